"""Compare the settings saved in a checkpoint with those of the command, and refuse files that are not checkpoints."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saccade.cli.errors import UsageError

_ABSENT = "(not set)"


def is_deepspeed_folder(checkpoint: Path) -> bool:
    """Return whether a checkpoint is a folder that DeepSpeed wrote.

    Args:
        checkpoint: A file or a folder.
    """
    return checkpoint.is_dir() and (_model_states(checkpoint) is not None or (checkpoint / "latest").is_file())


def _model_states(checkpoint: Path) -> Path | None:
    """Find the file of a DeepSpeed checkpoint that contains everything except optimizer states."""
    # Lightning names the tag `checkpoint`; stages 1 and 2 write mp_rank_00, stage 3 a part per rank
    files = sorted(checkpoint.glob("*/*mp_rank_00_model_states.pt"))
    return files[0] if files else None


def check_checkpoint(checkpoint: Path, strategy: Any) -> None:
    """Refuse a checkpoint that is missing, or that the strategy cannot read.

    Args:
        checkpoint: Value of ``--ckpt_path``.
        strategy: The value of ``trainer.strategy``: a name, or a mapping with ``class_path``.

    Raises:
        UsageError: The checkpoint is missing, is not a checkpoint, or needs another strategy.
    """
    if not checkpoint.exists():
        raise UsageError(f"--ckpt_path must be an existing checkpoint, got {checkpoint}: check the path.")
    if checkpoint.is_file() and not zipfile.is_zipfile(checkpoint):
        raise UsageError(
            f"--ckpt_path must be a complete checkpoint, got {checkpoint}: give checkpoints/last.ckpt or best.ckpt of a"
            " run, or an exported model with --model.path."
        )
    # .metadata: torch's format of sharded weights, which FSDP writes
    if checkpoint.is_dir() and not is_deepspeed_folder(checkpoint) and not (checkpoint / ".metadata").is_file():
        raise UsageError(
            f"--ckpt_path must be a checkpoint, got the folder {checkpoint}: give a file such as"
            f" {checkpoint / 'checkpoints' / 'last.ckpt'}."
        )
    name = strategy.get("class_path", "") if hasattr(strategy, "get") else strategy
    deepspeed = isinstance(name, str) and "deepspeed" in name.lower()
    if deepspeed and checkpoint.is_file():
        raise UsageError(
            f"--ckpt_path must be a folder that DeepSpeed wrote, got the file {checkpoint}: give such a folder, or the"
            " exported model with --model.path."
        )
    if not deepspeed and is_deepspeed_folder(checkpoint):
        raise UsageError(
            f"--ckpt_path must be a file without DeepSpeed, got its folder {checkpoint}: add the strategy of the run,"
            " for example --config strategy/deepspeed_stage_2.yaml, or give the exported model with --model.path."
        )


def read_settings(checkpoint: Path) -> dict[str, Any] | None:
    """Read the hyper-parameters that a module saved in its checkpoint, without running code from the file.

    Args:
        checkpoint: A file, or a folder that DeepSpeed wrote.

    Returns:
        Names and values, nested as saved; empty if the module saved none, None if they cannot be read.

    Raises:
        UsageError: The file is not a checkpoint of a run.
    """
    file = _model_states(checkpoint) if checkpoint.is_dir() else checkpoint
    if file is None:
        return None
    try:
        # mmap: the weights in the same file are not read
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of any kind; Lightning reports more when it loads the file
        return None
    if checkpoint.is_file() and not (isinstance(content, Mapping) and "pytorch-lightning_version" in content):
        raise UsageError(
            f"--ckpt_path must be a checkpoint of a run, got another file of torch, {checkpoint}: give last.ckpt or"
            " best.ckpt of a run, or an exported model with --model.path."
        )
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return {} if settings is None else dict(settings)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to one level with dotted names.

    Args:
        settings: Settings, possibly nested.
        prefix: Text before every name.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(saved: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """List the settings that differ between a checkpoint and the command.

    Args:
        saved: Hyper-parameters of the checkpoint as Lightning saves them.
        used: The command's ``model`` setting: ``class_path`` and ``init_args``.

    Returns:
        One line for each difference: ``name: checkpoint value -> used value``.
    """
    old = dict(saved)
    old.pop("_instantiator", None)
    new: dict[str, Any] = {**dict(used.get("init_args") or {}), **dict(used.get("dict_kwargs") or {})}
    if "_class_path" in old:
        old["class_path"] = old.pop("_class_path")
        new["class_path"] = used.get("class_path")
    old, new = flattened(old), flattened(new)
    lines = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if not _same(before, after):
            lines.append(f"{name}: {before} -> {after}")
    return lines


def _same(before: Any, after: Any) -> bool:
    """Compare values; a list equals a tuple, because files do not distinguish them."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after)
