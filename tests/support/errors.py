"""Checks a refusal: one line that says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def one_line(call: Callable[[], Any], *needles: str) -> None:
    """A call ends with a `ValueError` of one line that holds all needles."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    for needle in needles:
        assert needle in text, text
