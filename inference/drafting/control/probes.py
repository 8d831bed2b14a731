"""Probes: drafts that are tried where none promises a gain, and what they may lose."""

from __future__ import annotations

_SHARE = 0.005
"""Share of the time of plain rounds that probes may lose; it is saved up, from call to call."""
_AT_START = 0.3
"""What the probes of a new text may lose at once, in plain rounds: it need not be like the text before."""
_MOST_SAVED = 3.0
"""Probes for which is saved up at most: more in a row say no more about a text."""
_CHEAPEST = 0.08
"""Least loss that a probe is expected to have, in plain rounds: estimates are not better than this."""


class Probes:
    """Saves a share of the time of plain rounds, which probes may lose.

    Attributes:
        going: Whether a probe was accepted whole, so that it goes on.
    """

    def __init__(self) -> None:
        self.going = False
        self._saved = self._price = self._start = 0.0

    def begin(self, plain: float) -> None:
        """Starts a text.

        Args:
            plain: Seconds of a round without a draft.
        """
        self._start = _AT_START * plain
        self.going, self._saved = False, max(self._saved, self._start)

    def price(self, loss: float, plain: float, entry: float) -> None:
        """Sets what the next probe costs.

        Args:
            loss: Seconds that it takes beyond a plain round, all of which are lost if it is rejected.
            plain: Seconds of a round without a draft.
            entry: Seconds that a first draft takes beyond later ones.
        """
        self._price = max(loss, _CHEAPEST * plain) + entry

    def due(self) -> bool:
        """Whether enough is saved for a probe, or one goes on."""
        self.going |= self._saved >= self._price
        return self.going

    def save(self, plain: float) -> None:
        """Notes a round without a draft, of this many seconds."""
        self._add(_SHARE * plain)

    def observe(self, loss: float, whole: bool) -> None:
        """Notes a probe.

        Args:
            loss: Seconds that it took beyond the plain rounds for its tokens; below zero if it gained.
            whole: Whether all of its tokens were accepted: then it goes on.
        """
        self.going &= whole
        self._add(-loss)

    def _add(self, seconds: float) -> None:
        self._saved = min(self._saved + seconds, max(_MOST_SAVED * self._price, self._start))
