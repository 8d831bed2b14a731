"""Settings as values that JSON can represent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """Convert settings to values that JSON can represent.

    Args:
        value: A number, a text, a container or dataclass of such values, or any other object.

    Returns:
        Numbers, texts, lists and dictionaries. Any other object is represented by the name of its type, a model also
        by where it was loaded from.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value) if item.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    origin = getattr(value, "name_or_path", "")
    return f"{type(value).__name__}({origin})" if origin else type(value).__name__
