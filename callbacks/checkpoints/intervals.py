"""How often a checkpoint is saved: every so many steps, or after so much time."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass
class SaveInterval:
    """A number of optimizer steps, or a time.

    Args:
        steps: Optimizer steps between two saves.
        seconds: Seconds between two saves; give one of the two.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        self._step, self._time = 0, time.monotonic()

    @classmethod
    def parse(cls, value: int | str | None) -> SaveInterval | None:
        """Read the setting ``--save_every``.

        Args:
            value: A number of steps, or a time such as "90s", "30m" or "2h"; None for never.

        Returns:
            The interval, or None.

        Raises:
            ValueError: It is neither, or not above 0.
        """
        if value is None:
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value).strip())
        if isinstance(value, bool) or match is None or float(match[1]) <= 0 or (not match[2] and "." in match[1]):
            raise ValueError(
                f"save_every must be a number of steps or a time above 0, got {value!r}: give for example 500, 30m or"
                " 2h, or null to save after validations and epochs only."
            )
        return cls(seconds=float(match[1]) * _UNITS[match[2]]) if match[2] else cls(steps=int(match[1]))

    def restart(self, step: int) -> None:
        """Count from now on.

        Args:
            step: The optimizer steps so far.
        """
        self._step, self._time = step, time.monotonic()

    def is_over(self, step: int) -> bool:
        """Return whether the interval has passed since it was restarted.

        Args:
            step: The optimizer steps so far.
        """
        if self.steps is not None:
            return step - self._step >= self.steps
        return self.seconds is not None and time.monotonic() - self._time >= self.seconds
