"""The words of the caption grammar: all wordings of each fact, and the inverse map that finds facts in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SIZES = {
    "small": ("small", "little", "tiny", "modest"),
    "large": ("large", "big", "huge", "sizeable"),
}
COLOURS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "white": ("white", "ivory"),
    "magenta": ("magenta", "pink"),
}
DIRECTIONS = {
    "left": ("to the left", "leftward", "toward the left edge", "from right to left"),
    "right": ("to the right", "rightward", "toward the right edge", "from left to right"),
    "up": ("upward", "to the top", "toward the top edge", "from bottom to top"),
    "down": ("downward", "to the bottom", "toward the bottom edge", "from top to bottom"),
    "upper left": ("up and to the left", "toward the upper left corner", "from the lower right to the upper left"),
    "upper right": ("up and to the right", "toward the upper right corner", "from the lower left to the upper right"),
    "lower left": ("down and to the left", "toward the lower left corner", "from the upper right to the lower left"),
    "lower right": ("down and to the right", "toward the lower right corner", "from the upper left to the lower right"),
}
BACKGROUNDS = {
    "plain": ("a plain backdrop", "a uniform background", "a flat, uniform surface"),
    "striped": ("a striped backdrop", "a background of slanted stripes", "a surface with parallel bands"),
    "checkered": ("a checkered backdrop", "a background like a chessboard", "a surface of alternating squares"),
    "dotted": ("a dotted backdrop", "a background full of round spots", "a surface covered with dots"),
    "fading": ("a fading backdrop", "a background with a smooth gradient", "a surface that slowly gets brighter"),
    "grainy": ("a grainy backdrop", "a background of fine noise", "a surface that looks like sand"),
}
_BACKGROUND_KEYS = {
    "plain": ("plain", "uniform", "flat"),
    "striped": ("striped", "stripes", "bands"),
    "checkered": ("checkered", "chessboard", "checkerboard", "squares"),
    "dotted": ("dotted", "spots", "dots"),
    "fading": ("fading", "gradient", "brighter"),
    "grainy": ("grainy", "noise", "sand"),
}
"""The words in the phrases above that distinguish the backgrounds."""
COUNTS = {
    "1": ("a single digit", "just one digit", "only 1 numeral"),
    "2": ("two digits", "a pair of digits", "2 numerals", "a total of two digits"),
    "3": ("three digits", "a trio of digits", "3 numerals", "a total of three digits"),
    "4": ("four digits", "a quartet of digits", "4 numerals", "a total of four digits"),
}
FIRST = ("first", "at the start", "to begin with")
ORDINALS = ("first", "second", "third", "fourth")
NEXT = ("then", "next", "after that", "afterwards")
LAST = ("finally", "at the end", "last of all")

Claim = tuple[str, str]
"""The meaning of a phrase: a kind (`count`, `background`, `digit`, `size`, `colour`, `direction`, `place`) and a value.

The places are `1` to `4`, `next` and `last`.
"""


def _extra_directions() -> Iterator[tuple[str, Claim]]:
    """Names of directions that the grammar does not use, but that a model may compose from its words."""
    for side in ("left", "right"):
        for upper, words in (("upper", ("up", "upward", "upper", "top")), ("lower", ("down", "lower", "bottom"))):
            for word in words:
                for joint in (" ", " and ", " and to the ", "-"):
                    yield f"{word}{joint}{side}", ("direction", f"{upper} {side}")
        yield side, ("direction", side)
    for direction, words in (("up", ("up", "upwards", "top")), ("down", ("down", "downwards", "bottom"))):
        for word in words:
            yield word, ("direction", direction)


def _phrases() -> Iterator[tuple[str, Claim]]:
    groups: dict[str, Mapping[str, tuple[str, ...]]] = {
        "size": SIZES,
        "colour": COLOURS,
        "direction": DIRECTIONS,
        "background": _BACKGROUND_KEYS,
    }
    for kind, group in groups.items():
        for value, words in group.items():
            for word in words:
                yield word, (kind, value)
    yield from _extra_directions()
    for number, words in enumerate((("one", "1", "single"), ("two", "2"), ("three", "3"), ("four", "4")), start=1):
        for word in words:
            for noun in ("digit", "numeral"):
                yield f"{word} {noun}" + ("" if number == 1 else "s"), ("count", str(number))
        for word in ((), ("pair of",), ("trio of",), ("quartet of",))[number - 1]:
            yield f"{word} digits", ("count", str(number))
    for label, word in enumerate(DIGITS):
        yield word, ("digit", str(label))
        yield str(label), ("digit", str(label))
    for place, word in enumerate(ORDINALS, start=1):
        yield word, ("place", str(place))
    for word in FIRST:
        yield word, ("place", "1")
    for word in (*NEXT, "followed by"):
        yield word, ("place", "next")
    for word in (*LAST, "last", "final"):
        yield word, ("place", "last")


_CLAIMS: dict[str, Claim] = dict(_phrases())
# longer phrases first, because "from right to left" is one claim, not two
_PATTERN = re.compile(
    r"(?<![\w-])(?:" + "|".join(re.escape(phrase) for phrase in sorted(_CLAIMS, key=len, reverse=True)) + r")(?![\w-])"
)


def claims(text: str) -> list[Claim]:
    """Find the claims of a text.

    Args:
        text: Any text.

    Returns:
        The claims in order; of overlapping phrases the longest one counts.
    """
    plain = " ".join(text.lower().replace(",", " ").split())
    return [_CLAIMS[match[0]] for match in _PATTERN.finditer(plain)]
