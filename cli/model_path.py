"""What follows from `path`, the trained model of a language module: no configuration, and the tokenizer of the data."""

from __future__ import annotations

from jsonargparse import Namespace


def model_path(settings: Namespace) -> str | None:
    """Return the setting `model.path`.

    Args:
        settings: The parsed settings of a training command.

    Returns:
        The folder or hub id; None if it is not set, or if the module has no such setting.
    """
    path = (settings.model.get("init_args") or Namespace()).get("path")
    return path if isinstance(path, str) else None


def follow_model_path(settings: Namespace) -> list[str]:
    """Complete the settings of a module that is built from a trained model, in place.

    A configuration, which another file of settings may give, is left out, and data without a tokenizer takes that of
    the model.

    Args:
        settings: The parsed settings of a training command.

    Returns:
        What was done, in one line each.
    """
    path = model_path(settings)
    if path is None:
        return []
    lines = []
    model = settings.model.init_args
    if model.get("config") is not None:
        model.config = None
        lines.append(f"model.config is not used, because model.path is given ({path})")
    data = (settings.get("data") or Namespace()).get("init_args") or Namespace()
    if "tokenizer" in data and data.tokenizer is None:
        data.tokenizer = path
    return lines
