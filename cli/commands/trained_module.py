"""Build the trained module of a checkpoint from the checkpoint alone: its class, its settings and its weights."""

import importlib
import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities.model_helpers import is_overridden

from saccade.cli.checkpoint_settings import check_checkpoint, is_deepspeed_folder
from saccade.cli.errors import UsageError, one_line

Content = Mapping[str, Any]
"""What a checkpoint of Lightning contains: `state_dict`, `hyper_parameters`, and what a module adds."""


def read_checkpoint(checkpoint: Path) -> Content:
    """Read a checkpoint. The tensors of a file are mapped into memory, so that those nobody asks for are not read.

    Args:
        checkpoint: A file that Lightning wrote, or a folder that DeepSpeed wrote.

    Returns:
        Its content. Of a DeepSpeed folder, the weights are put together from the parts of all ranks, as float32.

    Raises:
        UsageError: It is not a complete checkpoint of a run, it contains objects that only code of its own can read, or
            a package that is needed to read it is missing.
    """
    if checkpoint.is_dir() and (checkpoint / ".metadata").is_file():
        raise UsageError(
            f"CKPT must be one file, got the sharded checkpoint {checkpoint}: join it with `python -m"
            f" lightning.pytorch.utilities.consolidate_checkpoint {checkpoint}`, and export the file."
        )
    if checkpoint.is_dir() and any((checkpoint / name).is_file() for name in ("config.json", "settings.json")):
        raise UsageError(
            f"CKPT must be a checkpoint, got {checkpoint}, which is a model folder already: use it as it is."
        )
    try:
        check_checkpoint(checkpoint, "deepspeed" if is_deepspeed_folder(checkpoint) else "auto")
    except UsageError as error:
        raise UsageError(str(error).replace("--ckpt_path", "CKPT")) from error
    if checkpoint.is_dir():
        return _from_deepspeed(checkpoint)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"CKPT must hold plain values and tensors, got objects of other classes in {checkpoint}: if you trust"
            " it, load it in Python with load_from_checkpoint(..., weights_only=False), and call save_pretrained."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"CKPT must be a complete checkpoint, got {checkpoint}, which torch cannot read ({reason}): give another"
            " one of the run."
        ) from error
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise UsageError(
            f"CKPT must be a checkpoint of a run, got another file of torch, {checkpoint}: give last.ckpt or best.ckpt."
        )
    return content


def _from_deepspeed(folder: Path) -> Content:
    if importlib.util.find_spec("deepspeed") is None:
        raise UsageError(
            f"CKPT is a folder of DeepSpeed, {folder}, and the package deepspeed that joins its parts is not installed:"
            " install it (make install EXTRAS=dev,deepspeed), or export where it is installed."
        )
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    except (FileNotFoundError, KeyError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"CKPT must be a complete folder of DeepSpeed, got {folder} ({one_line(error)}): give another checkpoint."
        ) from error
    # the same in the file of every rank; DeepSpeed's own loading, above, trusts these files too
    file = sorted(folder.glob("*/*mp_rank_00_model_states.pt"))[0]
    content = dict(torch.load(file, map_location="cpu", weights_only=False, mmap=True))
    # Lightning before 2.1 kept the name of its wrapper
    content["state_dict"] = {name.removeprefix("_forward_module."): value for name, value in weights.items()}
    return content


def trained_module(content: Content) -> LightningModule:
    """Build the module of a checkpoint, in evaluation mode, with weights of the checkpoint's types, on the CPU.

    Args:
        content: The checkpoint, from `read_checkpoint`.

    Raises:
        UsageError: The class is not named or cannot be imported, it cannot be built here, or the weights do not fit it.
    """
    settings = dict(content.get("hyper_parameters") or {})
    settings.pop("_instantiator", None)
    name = settings.get("_class_path")
    if not isinstance(name, str):
        raise UsageError(
            "CKPT must name the class of its module, got one that was not trained by the saccade command: load it in"
            " Python with load_from_checkpoint of its class, and call save_pretrained."
        )
    kind = _class_of(name)
    try:
        module: LightningModule = instantiate_module(kind, settings)
        if is_overridden("configure_model", module):
            module.configure_model()
        module.on_load_checkpoint(dict(content))
    except (ArgumentError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(
            f"CKPT's {name} cannot be built from the settings in it ({one_line(error)}): restore what they name."
        ) from error
    weights = content["state_dict"]
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    for key, tensor in tensors.items():
        if key in weights and tensor.dtype != weights[key].dtype:
            tensor.data = tensor.data.to(weights[key].dtype)  # in place: tied weights stay tied
    try:
        module.load_state_dict(weights, strict=module.strict_loading)
    except RuntimeError as error:
        raise UsageError(one_line(error).replace("--ckpt_path", "CKPT")) from error
    return module.eval()


def _class_of(name: str) -> type[LightningModule]:
    """Import the class of a module; anything else that a file names is never called."""
    place, _, short = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(place), short)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"CKPT needs the class {name}, which cannot be imported ({one_line(error)}): install its package, or run"
            " the command where the package is."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, LightningModule)):
        raise UsageError(f"CKPT must name a LightningModule, got {name}: give a checkpoint of a run.")
    return kind
