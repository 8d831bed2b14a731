"""What settings of decoders have in common: a number of the right kind, or one line that says so."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn


def check_number(name: str, value: Any) -> None:
    """Refuses what is no number; true and false are none.

    Raises:
        ValueError: Names the setting and its value.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}.")


def check_share(name: str, value: Any) -> None:
    """Refuses what is no share: no number, not in [0, 1], or NaN.

    Raises:
        ValueError: Names the setting and its value.
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}: give a share, for example 0.9 for 90 %.")


def check_switch(name: str, value: Any) -> None:
    """Refuses what is neither true nor false; a text would count as true.

    Raises:
        ValueError: Names the setting and its value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}.")


def check_model(name: str, value: Any) -> None:
    """Refuses what is neither a model nor a text that names one.

    Raises:
        ValueError: Names the setting and its value.
    """
    if not isinstance(value, str | nn.Module):
        raise ValueError(f"{name} must be a path, a hub id or a loaded model, got {value!r}.")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is no whole number, or below ``least``.

    Raises:
        ValueError: Names the setting and its value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def leads_nowhere(place: str) -> bool:
    """Whether a text is a path to nothing; one with at most one slash may name a model of the Hugging Face hub."""
    return place.count("/") > 1 and not Path(place).exists()


def check_place(name: str, place: str) -> None:
    """Refuses a path that leads nowhere (see ``leads_nowhere``).

    Raises:
        ValueError: Names the setting and the path.
    """
    if leads_nowhere(place):
        raise ValueError(f"{name}: there is no {place}; name a folder that is there, or run first what writes it.")
