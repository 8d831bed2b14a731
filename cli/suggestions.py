"""What a misspelt class or setting probably was meant to be."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

_PACKAGES = ("modules", "datamodules", "callbacks", "inference")
_SETTING = re.compile(r"(Option '(\w+)' is not accepted)")
_ARGUMENT = re.compile(r"(unrecognized arguments: --([\w-]+)(?=[ .=]|$)[^;]*)")
_CLASS = re.compile(
    r"Expected a path but (\S+) either not accessible or invalid; Expected a dot import path string: \1;"
    r" Given value: \1"
)


def with_suggestions(text: str, options: Iterable[str] = ()) -> str:
    """Add to a parser's message what a misspelt word of it is near to.

    Args:
        text: The message in one line.
        options: Of the command, without their dashes.

    Returns:
        The message with "did you mean ...?" behind a setting that no class has or an option that there is not, and
        with a plain sentence in place of the parser's three about a class that does not exist.
    """
    text = _ARGUMENT.sub(lambda found: found[1] + hint(found[2], options, "--"), text)
    text = _SETTING.sub(lambda found: found[1] + hint(found[2], _settings()), text)
    return _CLASS.sub(lambda found: f"there is no class {found[1]}" + hint(found[1], dict(_exported())), text)


def hint(word: str, known: Iterable[str], before: str = "") -> str:
    """Ask whether the nearest of all known words was meant.

    Args:
        word: What was given.
        known: What there is.
        before: What is written in front of such words.

    Returns:
        "; did you mean ...?", or nothing where no word is near.
    """
    near = difflib.get_close_matches(word, sorted(set(known)), 1)
    return f"; did you mean {before}{near[0]}?" if near else ""


def _exported() -> Iterator[tuple[str, Any]]:
    """Names that a configuration can use without their module, and what they name."""
    for package in _PACKAGES:
        module = import_module(f"saccade.{package}")
        yield from ((name, getattr(module, name)) for name in module.__all__)


def _settings() -> Iterator[str]:
    """Arguments of every class that a configuration can name, and of the trainer."""
    from lightning.pytorch import Trainer

    yield from inspect.signature(Trainer).parameters
    for _, value in _exported():
        if inspect.isclass(value):
            yield from inspect.signature(value).parameters
