"""What follows from the trained model of a language module: no settings of a new one, the tokenizer of the data."""

from __future__ import annotations

from jsonargparse import Namespace

_OF_A_NEW_MODEL = ("config", "language_model", "vision_tower")


def model_path(settings: Namespace, name: str = "path") -> str | None:
    """Return a setting of the model that is a folder or hub id, by default `model.path`.

    Args:
        settings: The parsed settings of a training command.
        name: Name of the setting.

    Returns:
        The folder or hub id; None if it is not set, or if the module has no such setting.
    """
    path = (settings.model.get("init_args") or Namespace()).get(name)
    return path if isinstance(path, str) else None


def follow_model_path(settings: Namespace) -> list[str]:
    """Complete the settings of a module that is built from a trained model or language part, in place.

    The settings of a new model, which another file of settings may give, are left out if there is a `path`, and data
    without a tokenizer takes that of the model or of its language part.

    Args:
        settings: The parsed settings of a training command.

    Returns:
        What was done, in one line each.
    """
    path = model_path(settings)
    lines = []
    if path is not None:
        model = settings.model.init_args
        for name in _OF_A_NEW_MODEL:
            if model.get(name) is not None:
                model[name] = None
                lines.append(f"model.{name} is not used, because model.path is given ({path})")
    source = path or model_path(settings, "language_model")
    if source is None:
        return []
    data = (settings.get("data") or Namespace()).get("init_args") or Namespace()
    if "tokenizer" in data and data.tokenizer is None:
        data.tokenizer = source
    return lines
