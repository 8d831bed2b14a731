"""What settings of decoders have in common: a number of the right kind, or one line that says so."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any


def check_number(name: str, value: Any) -> None:
    """Refuses what is no number; true and false are none.

    Raises:
        ValueError: Names the setting and its value.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no whole number, or below ``least``.

    Raises:
        ValueError: Names the setting and its value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_place(name: str, place: str) -> None:
    """Refuses a path that leads nowhere; a text with at most one slash may name a model of the Hugging Face hub.

    Raises:
        ValueError: Names the setting and the path.
    """
    if place.count("/") > 1 and not Path(place).exists():
        raise ValueError(f"{name}: there is no {place}; name a folder that is there, or run first what writes it.")
