"""What a checkpoint says about its model beside what the command says: the command wins, no difference is silent."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from saccade.cli.errors import UsageError

_ABSENT = "(not there)"


def is_deepspeed_folder(checkpoint: Path) -> bool:
    """Whether a checkpoint is a folder that DeepSpeed wrote.

    Args:
        checkpoint: A file or a folder.
    """
    return checkpoint.is_dir() and (_model_states(checkpoint) is not None or (checkpoint / "latest").is_file())


def _model_states(checkpoint: Path) -> Path | None:
    """The file of a DeepSpeed checkpoint in which rank 0 keeps everything that is not an optimizer state."""
    # Lightning names the tag `checkpoint`; stages 1 and 2 write mp_rank_00, stage 3 a part per rank
    files = sorted(checkpoint.glob("*/*mp_rank_00_model_states.pt"))
    return files[0] if files else None


def check_checkpoint(checkpoint: Path, strategy: Any) -> None:
    """Refuse a checkpoint that is missing, or of another kind than the strategy reads.

    Args:
        checkpoint: What ``--ckpt_path`` names.
        strategy: The value of ``trainer.strategy``: a name, or a mapping with ``class_path``.

    Raises:
        UsageError: With what to do instead.
    """
    if not checkpoint.exists():
        raise UsageError(f"--ckpt_path {checkpoint}: no such file or folder")
    if checkpoint.is_file() and not zipfile.is_zipfile(checkpoint):
        raise UsageError(
            f"--ckpt_path {checkpoint}: this is no checkpoint, or it is cut off; give checkpoints/last.ckpt or"
            " best.ckpt of a run, or an exported model with --model.path"
        )
    # .metadata: torch's own format of spread weights, which FSDP writes
    if checkpoint.is_dir() and not is_deepspeed_folder(checkpoint) and not (checkpoint / ".metadata").is_file():
        raise UsageError(
            f"--ckpt_path {checkpoint}: this folder is no checkpoint; give a file such as"
            f" {checkpoint / 'checkpoints' / 'last.ckpt'}"
        )
    name = strategy.get("class_path", "") if hasattr(strategy, "get") else strategy
    deepspeed = isinstance(name, str) and "deepspeed" in name.lower()
    if deepspeed and checkpoint.is_file():
        raise UsageError(
            f"--ckpt_path {checkpoint}: this is a single file, but DeepSpeed reads the folder that it wrote itself; "
            "give such a folder, or the exported model with --model.path"
        )
    if not deepspeed and is_deepspeed_folder(checkpoint):
        raise UsageError(
            f"--ckpt_path {checkpoint}: DeepSpeed wrote this folder; add the strategy of its run, for example "
            "--config strategy/deepspeed_stage_2.yaml, or give the exported model with --model.path"
        )


def read_settings(checkpoint: Path) -> dict[str, Any] | None:
    """Read the hyper-parameters that a module saved in its checkpoint, without running anything that lies in it.

    Args:
        checkpoint: A file, or a folder that DeepSpeed wrote.

    Returns:
        Names and values, nested as saved; empty where the module saved none, None where they cannot be read.

    Raises:
        UsageError: The file holds something else than a checkpoint.
    """
    file = _model_states(checkpoint) if checkpoint.is_dir() else checkpoint
    if file is None:
        return None
    try:
        # mmap: the weights lie in the same file and are not wanted here
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever the file holds instead; Lightning will say more when it loads it
        return None
    if checkpoint.is_file() and not (isinstance(content, Mapping) and "pytorch-lightning_version" in content):
        raise UsageError(
            f"--ckpt_path {checkpoint}: torch reads this file, but it is no checkpoint of a run; give last.ckpt or"
            " best.ckpt of one, or an exported model with --model.path"
        )
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return {} if settings is None else dict(settings)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested settings as one level with dotted names.

    Args:
        settings: Possibly nested.
        prefix: Before every name.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(saved: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """List where the settings of a checkpoint and those of the command differ.

    Args:
        saved: Hyper-parameters of the checkpoint, as Lightning saves them.
        used: The command's ``model`` setting: ``class_path`` and ``init_args``.

    Returns:
        One line per difference: ``name: checkpoint value -> used value``.
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
    """Equality that does not tell a list from the tuple that it was before it was written."""
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(_same, before, after))
    return bool(before == after)
