"""Suggest the nearest known name for a misspelt class, setting or option."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

_PACKAGES = {
    "model": "saccade.modules",
    "data": "saccade.datamodules",
    "trainer.callbacks": "saccade.callbacks",
    "decoder": "saccade.inference",
}
_LIGHTNING = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.strategies")
_SHORT = {
    "lr": "learning_rate", "bs": "batch_size", "epochs": "max_epochs", "steps": "max_steps", "gpus": "devices",
    "seed": "seed_everything",
}  # fmt: skip
_SETTING = re.compile(r"(Option '(\w+)' is not accepted)")
_SECTION = re.compile(r"(Subcommand '\w+' does not accept option '([\w.]+)')")
_OPTION = re.compile(r"(unrecognized arguments: --([\w.-]+)(?=[ =]|$)[^;]*)")
_WORD = re.compile(r"(unrecognized arguments: ([^-;\s][^;\s]*)[^;]*)")
_NO_MODEL = re.compile(r"the following arguments are required: \w+\.model$")
_REQUIRED = re.compile(r'(Parser key "([\w.]+)": the following arguments are required: (\w+)[^;]*)')
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
        The message with "did you mean ...?" after an unknown setting or option, with what to do about an argument that
        is missing, and with one plain sentence instead of the parser's three about a class that does not exist.
    """
    options = list(options)
    text = _NO_MODEL.sub(
        "model must be given, got none: name a file of settings with --config, for example --config lm/tiny.yaml, or a"
        " class with --model.",
        text,
    )
    text = _REQUIRED.sub(lambda found: f"{found[1]}: add --{found[2]}.{found[3]}=VALUE", text)
    text = _OPTION.sub(lambda found: found[1] + _of_an_option(found[2], options), text)
    text = _WORD.sub(lambda found: found[1] + _of_a_word(found[2]), text)
    text = _SECTION.sub(lambda found: found[1] + _of_a_section(found[2], options), text)
    text = _SETTING.sub(lambda found: found[1] + hint(found[2], {*_settings()} - {found[2]}), text)
    return _CLASS.sub(lambda found: _of_a_class(found[1]), text)


def _of_a_class(name: str) -> str:
    known = dict(_exported())
    if name in known:
        return f"{name} is a class of another kind: name one that this setting takes."
    return f"there is no class {name}" + (
        hint(name, known) or ": give the name of an existing class, with its module if it is not saccade's."
    )


def _of_an_option(name: str, options: Iterable[str]) -> str:
    from lightning.pytorch import Trainer

    first, _, rest = name.partition(".")
    if first == "trainer" and "trainer" in options:
        return hint(rest, _arguments(Trainer), "--trainer.")
    return _place(first, options, "--") or hint(first, options, "--")


def _of_a_word(word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f": write --config {word}"
    return ": every setting has a name that begins with two dashes"


def _of_a_section(name: str, options: Iterable[str]) -> str:
    first = name.split(".")[0]
    return _place(first, options, "") or hint(first, options)


def _place(name: str, options: Iterable[str], before: str) -> str:
    """Say to which section a setting belongs that was given without it."""
    from lightning.pytorch import Trainer

    name = _SHORT.get(name, name)
    if "trainer" not in options:
        return ""
    if name in inspect.signature(Trainer).parameters:
        return f": did you mean {before}trainer.{name}?"
    for section in ("model", "data"):
        if any(name in _arguments(kind) for _, kind in _members(_PACKAGES[section])):
            return f": did you mean {before}{section}.{'' if before else 'init_args.'}{name}?"
    return ""


def hint(word: str, known: Iterable[str], before: str = "") -> str:
    """Suggest the nearest of the known words, whatever their case.

    Args:
        word: The word that was given.
        known: The known words.
        before: Text before the suggestion, such as dashes.

    Returns:
        ": did you mean ...?", or an empty text if no word is near.
    """
    words = {name.lower(): name for name in sorted(set(known), reverse=True)}
    if _SHORT.get(word) in words:
        return f": did you mean {before}{_SHORT[word]}?"
    near = sorted((name for name in words if len(word) > 3 and name.startswith(word.lower())), key=len)
    near = near or difflib.get_close_matches(word.lower(), sorted(words), 1)
    return f": did you mean {before}{words[near[0]]}?" if near else ""


def _members(package: str) -> Iterator[tuple[str, Any]]:
    module = import_module(package)
    yield from ((name, getattr(module, name)) for name in module.__all__)


def _exported() -> Iterator[tuple[str, Any]]:
    """Yield the names that a configuration can use without their module, and their objects."""
    for package in (*_PACKAGES.values(), *_LIGHTNING):
        yield from _members(package)


def _arguments(kind: Any) -> Iterable[str]:
    return inspect.signature(kind).parameters if inspect.isclass(kind) else ()


def _settings() -> Iterator[str]:
    """Yield the arguments of the trainer and of every class of saccade that a configuration can name."""
    from lightning.pytorch import Trainer

    yield from _arguments(Trainer)
    for package in _PACKAGES.values():
        for _, kind in _members(package):
            yield from _arguments(kind)
