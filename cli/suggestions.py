"""Suggest the nearest known name for a misspelt class, setting or option."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

_PACKAGES = ("modules", "datamodules", "callbacks", "inference")
_LIGHTNING = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.strategies")
_SETTING = re.compile(r"(Option '(\w+)' is not accepted)")
_ARGUMENT = re.compile(r"(unrecognized arguments: --([\w-]+)(?=[ .=]|$)[^;]*)")
_CLASS = re.compile(
    r"Expected a path but (\S+) either not accessible or invalid; Expected a dot import path string: \1;"
    r" Given value: \1"
)


def with_suggestions(text: str, options: Iterable[str] = ()) -> str:
    """Add suggestions for misspelt names to a parser's message.

    Args:
        text: The message in one line.
        options: Options of the command, without dashes.

    Returns:
        The message with "did you mean ...?" after an unknown setting or option, and with one plain sentence instead of
        the parser's three about a class that does not exist.
    """
    text = _ARGUMENT.sub(lambda found: found[1] + hint(found[2], options, "--"), text)
    text = _SETTING.sub(lambda found: found[1] + hint(found[2], _settings()), text)
    return _CLASS.sub(lambda found: f"there is no class {found[1]}" + _class_hint(found[1]), text)


def _class_hint(name: str) -> str:
    return (
        hint(name, dict(_exported()).keys() - {name}) or ": give the name of an existing class, with its module if it is not saccade's."
    )


def hint(word: str, known: Iterable[str], before: str = "") -> str:
    """Suggest the nearest of the known words.

    Args:
        word: The word that was given.
        known: The known words.
        before: Text before the suggestion, such as dashes.

    Returns:
        ": did you mean ...?", or an empty text if no word is near.
    """
    near = difflib.get_close_matches(word, sorted(set(known)), 1)
    return f": did you mean {before}{near[0]}?" if near else ""


def _exported() -> Iterator[tuple[str, Any]]:
    """Yield the names that a configuration can use without their module, and their objects."""
    for package in (*(f"saccade.{name}" for name in _PACKAGES), *_LIGHTNING):
        module = import_module(package)
        yield from ((name, getattr(module, name)) for name in module.__all__)


def _settings() -> Iterator[str]:
    """Yield the arguments of the trainer and of every class that a configuration can name."""
    from lightning.pytorch import Trainer

    yield from inspect.signature(Trainer).parameters
    for _, value in _exported():
        if inspect.isclass(value):
            yield from inspect.signature(value).parameters
