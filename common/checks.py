"""Validators of settings. Each refuses a wrong value with one line: the name, the rule, the value, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn


def check_number(name: str, value: Any) -> None:
    """Refuse a value that is no real number; ``True`` and ``False`` are refused too.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}: give a number.")


def check_share(name: str, value: Any) -> None:
    """Refuse a value that is no number from 0 to 1; NaN is refused too.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is no number, or outside [0, 1].
    """
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}: give a share, for example 0.9 for 90 %.")


def check_fraction(name: str, value: Any) -> None:
    """Refuse a value that is no number between 0 and 1, or that is 0, 1 or NaN.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is no number, or outside of (0, 1).
    """
    check_number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} must be above 0 and below 1, got {value}: give a fraction, for example 0.1.")


def check_positive(name: str, value: Any) -> None:
    """Refuse a value that is no number above 0; NaN is refused too.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is no number, or not above 0.
    """
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}: give a positive number.")


def check_not_negative(name: str, value: Any) -> None:
    """Refuse a value that is no number, or below 0; NaN is refused too.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is no number, or below 0.
    """
    check_number(name, value)
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}: give a number that is not negative.")


def check_count(name: str, value: Any, least: int = 1, advice: str = "") -> None:
    """Refuse a value that is no whole number, or below ``least``; ``True`` and ``False`` are refused too.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.
        least: Smallest value that is allowed.
        advice: What to do, the end of the message; empty for a general one.

    Raises:
        ValueError: The value is no whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}: {advice or 'give a whole number'}.")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}: {advice or 'raise it'}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.
        choices: The values that are allowed, at least one, in the order in which the message lists them.

    Raises:
        ValueError: The value is none of them.
    """
    allowed = list(choices)
    if value not in allowed:
        *others, last = map(str, allowed)
        listed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"{name} must be {listed}, got {value!r}: choose one of these.")


def check_switch(name: str, value: Any) -> None:
    """Refuse a value that is neither ``True`` nor ``False``: a text such as "no" would count as true.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is neither of the two.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}: write true or false without quotes.")


def check_model(name: str, value: Any) -> None:
    """Refuse a value that is neither a loaded model nor the text that names one.

    Args:
        name: Name of the setting, for the message.
        value: Value of the setting.

    Raises:
        ValueError: The value is neither of the two.
    """
    if not isinstance(value, str | nn.Module):
        raise ValueError(f"{name} must be a path, a hub id or a loaded model, got {value!r}: give one of these.")


def leads_nowhere(place: str) -> bool:
    """Whether a text must be a path, and nothing exists there.

    Args:
        place: A path or a Hugging Face hub id. A text with at most one slash may be a hub id, so it is not a path for
            certain.
    """
    return place.count("/") > 1 and not Path(place).exists()


def check_place(name: str, place: str) -> None:
    """Refuse a path at which nothing exists; see ``leads_nowhere``.

    Args:
        name: Name of the setting, for the message.
        place: A path or a Hugging Face hub id.

    Raises:
        ValueError: Nothing exists at the path.
    """
    if leads_nowhere(place):
        raise ValueError(
            f"{name} must be an existing path, got {place}: name an existing folder, or first run the command that"
            " writes it."
        )
