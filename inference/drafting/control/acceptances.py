"""Acceptances: how often the token at each place of a draft is accepted."""

from __future__ import annotations

_DECAY = 0.93
"""Weight of the earlier rounds in the acceptance of a place, after each round that drafted it."""
_DECAY_OF_PROBES = 0.7
"""The same in a probe: what was seen before the plain rounds is old."""
_PRIOR, _LEAST_GUESS = 2.0, 1.0
"""Weight of the first guess of an acceptance, in rounds, and what stays of it: some hope, so that a rejected draft is
not the last one."""
_CARRIED = 1.0
"""Weight of what earlier texts have shown, in rounds, when a text begins: a first draft that fails counts as much."""
_OF_A_TEXT, _TEXT_DECAY = 4.0, 0.8
"""The most drafts with which a text counts in the guess for the next one, and the weight of the texts before it: the
next text may be of another kind than the last."""


class Acceptances:
    """The acceptance at each place of a draft, given that the places before were accepted; old rounds are forgotten.

    Args:
        longest: Places of a draft.
    """

    def __init__(self, longest: int) -> None:
        self._accepted = [0.0] * longest
        self._tried = [0.0] * longest
        self._guess = [_PRIOR] * longest
        self._first = 0.5
        self._in_text = [(0, 0)] * longest
        self._in_texts = [(0.0, 0.0)] * longest

    def begin(self) -> None:
        """Starts a text: what was seen in earlier ones counts as a guess."""
        for place, (tried, accepted) in enumerate(self._in_text):
            if not tried:
                continue
            weight = min(1.0, _OF_A_TEXT / tried)
            before, taken = self._in_texts[place]
            before, taken = _TEXT_DECAY * before + weight * tried, _TEXT_DECAY * taken + weight * accepted
            self._in_texts[place], self._in_text[place] = (before, taken), (0, 0)
            self._tried[place] = min(_CARRIED, before)
            self._accepted[place] = self._tried[place] * taken / before
        before, taken = self._in_texts[0]
        self._first = (taken + _PRIOR * 0.5) / (before + _PRIOR)

    def observe(self, drafted: int, accepted: int, probe: bool) -> None:
        """Notes a draft.

        Args:
            drafted: Its tokens.
            accepted: Accepted ones among them.
            probe: Whether it followed rounds without a draft.
        """
        decay = _DECAY_OF_PROBES if probe else _DECAY
        for place in range(min(drafted, accepted + 1, len(self._tried))):
            self._guess[place] = max(_LEAST_GUESS, self._guess[place] * decay)
            self._tried[place] = self._tried[place] * decay + 1
            self._accepted[place] = self._accepted[place] * decay + (place < accepted)
            seen, taken = self._in_text[place]
            self._in_text[place] = seen + 1, taken + (place < accepted)

    def expected(self) -> list[float]:
        """Expected tokens of a round that drafts 0, 1, 2, ... tokens: the accepted ones and one of the target."""
        expected, chance = [1.0], 1.0
        share = self._first  # the guess of the first place; that of each later one is what the place before has shown
        for accepted, tried, guess in zip(self._accepted, self._tried, self._guess, strict=True):
            share = (accepted + guess * share) / (tried + guess)
            chance *= share
            expected.append(expected[-1] + chance)
        return expected
