"""Compressors of the key-value cache on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any

import yaml

import saccade.inference
from saccade.cli.errors import UsageError
from saccade.cli.suggestions import hint
from saccade.inference import CacheCompressor

_EXAMPLE = "'{class_path: saccade.inference.HybridKV, init_args: {budget: 0.1}}'"


def compressor_classes() -> dict[str, type[CacheCompressor]]:
    """Return the compressors by the name of their file, as in compressor/hybrid_kv.yaml."""
    kinds = [getattr(saccade.inference, name) for name in saccade.inference.__all__]
    return {
        kind.__module__.rpartition(".")[2]: kind
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, CacheCompressor) and kind is not CacheCompressor
    }


def compressor_settings(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return class and settings of compressors by the second part of their rows' names.

    Args:
        given: For each compressor a name, a name and its budget, as ``hybrid_kv=0.2``, or a mapping with ``class_path``
            and ``init_args`` as in YAML. Names may also be separated by commas.

    Raises:
        UsageError: There is no such compressor, it has no budget, or the text is none of these.
    """
    texts = [[text] if text.lstrip().startswith("{") else text.split(",") for text in given]
    found: dict[str, dict[str, Any]] = {}
    for text in dict.fromkeys(part.strip() for parts in texts for part in parts if part.strip()):
        name, settings = _written_out(text) if text.startswith("{") else _named(text)
        number = 1
        while (free := name if number == 1 else f"{name}-{number}") in found:
            number += 1
        found[free] = settings
    return found


def _named(text: str) -> tuple[str, dict[str, Any]]:
    """A compressor that is given by its name, with or without a budget."""
    known = compressor_classes()
    name, given, budget = text.partition("=")
    if name not in known:
        raise UsageError(
            f"--compressors must be some of {', '.join(known)}, got {name}{hint(name, known) or ': choose of these.'}"
        )
    path, settings = f"saccade.inference.{known[name].__name__}", signature(known[name]).parameters
    if missing := [key for key, item in settings.items() if item.default is Parameter.empty]:
        raise UsageError(
            f"--compressors must give {name} its {missing[0]}, got {text}: write "
            f"'{{class_path: {path}, init_args: {{{missing[0]}: ...}}}}'."
        )
    if not given:
        return name, {"class_path": path}
    if "budget" not in settings:
        raise UsageError(f"--compressors must give {name} no budget, got {text}: write {name} alone.")
    try:
        return f"{name}-{budget}", {"class_path": path, "init_args": {"budget": float(budget)}}
    except ValueError as error:
        raise UsageError(
            f"--compressors must have a number behind {name}=, got {budget!r}: write {name}=0.1."
        ) from error


def _written_out(text: str) -> tuple[str, dict[str, Any]]:
    """A compressor that is written as in YAML; its name is that of its class's file."""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        settings = None
    if not isinstance(settings, dict) or not isinstance(settings.get("class_path"), str):
        raise UsageError(
            f"--compressors must be names, or mappings with class_path and init_args, got {text}: write {_EXAMPLE}."
        )
    kind = settings["class_path"].rpartition(".")[2]
    return next((name for name, each in compressor_classes().items() if each.__name__ == kind), kind), settings
