"""StopSignals: Ctrl-C and SIGTERM are noted, and take effect where a training can be continued."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException


class StopSignals:
    """Note the first Ctrl-C or SIGTERM; a second Ctrl-C takes effect at once.

    Signals are handled in the main thread only; in another one, `install` does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Handle the two signals until `remove`."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self.received = None
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def remove(self) -> None:
        """Handle the two signals as before `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def raise_if_received(self) -> None:
        """Raise what the signal means.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
            SIGTERMException: SIGTERM was sent.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received == signal.SIGTERM:
            raise SIGTERMException

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            print(f"saccade: stopping after this step{again}", file=sys.stderr, flush=True)
        self.received = number
