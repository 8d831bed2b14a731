"""What the commands that decode with a given model have in common: the model, the decoder, the device, the parser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import Parameter, signature
from typing import Any, Literal, cast

import torch
from jsonargparse import ArgumentError, ArgumentParser
from transformers import AutoConfig

import saccade.inference
from saccade.cli.errors import UsageError, one_line, raised_by_us
from saccade.common.checks import check_place
from saccade.datamodules.video.preprocessing import FORMATS
from saccade.inference import Decoder
from saccade.inference.draft_decoder import DraftModelDecoder
from saccade.inference.huggingface.loading import load_error

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-true", "float16": "16-true", "float64": "64-true"}
"""Lightning's precision of each type of weights."""

VISION = tuple(FORMATS)
"""Model types that read images and videos."""

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def config_of_model(model: str) -> Any:
    """Read the configuration of the model, which says early whether there is one.

    Args:
        model: Folder or hub id.

    Raises:
        UsageError: There is no model.
    """
    try:
        check_place("MODEL", model)
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"MODEL must be the folder or the hub id of a language model, got {model!r} ({load_error(error)}): check "
            "the path."
        ) from error


def decoder_classes() -> dict[str, type[Decoder]]:
    """Return the decoders by the name of their file, as in decoder/prompt_lookup.yaml."""
    found = {}
    for name in saccade.inference.__all__:
        kind = getattr(saccade.inference, name)
        module = getattr(kind, "__module__", "")
        if isinstance(kind, type) and issubclass(kind, Decoder) and module.startswith("saccade.inference.decoders."):
            found[module.rpartition(".")[2]] = kind
    return found


def decoder_settings(name: str, draft: str | None, skip: str) -> dict[str, Any]:
    """Return class and settings of a decoder: its own, with the draft model and the skipped sub-layers if it has them.

    Args:
        name: Name of the decoder.
        draft: Folder or hub id of a draft model.
        skip: Sub-layers that the model skips when it drafts for itself.
    """
    kind = decoder_classes()[name]
    given: dict[str, Any] = {}
    if draft is not None and issubclass(kind, DraftModelDecoder):
        given["draft_model"] = draft
    if kind is saccade.inference.SelfSpeculative:
        given["skip"] = skip
    return {"class_path": f"saccade.inference.{kind.__name__}", "init_args": given}


def check_draft(names: Iterable[str], draft: str | None) -> None:
    """Refuse decoders that need a draft model if none is given.

    Args:
        names: Names of decoders.
        draft: Folder or hub id of a draft model.

    Raises:
        UsageError: One of them needs a draft model.
    """
    for name, kind in decoder_classes().items():
        needs = any(item.name == "draft_model" and item.default is MISSING for item in fields(cast("Any", kind)))
        if needs and name in names and draft is None:
            raise UsageError(f"--draft must be given for the decoder {name}, got none: name a smaller model.")


def hardware(device: str, dtype: str, config: Any) -> tuple[str, int | None, str]:
    """Choose the device and the type of the weights.

    Args:
        device: `auto`, `cpu`, `cuda` or one GPU.
        dtype: A type, or `auto`.
        config: Configuration of the model.

    Returns:
        `cuda` or `cpu`, the number of the GPU, and the type.

    Raises:
        UsageError: There is no such device.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:NUMBER, got {device}: choose one of these.")
    gpu = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device must be a device of this machine, got {device} with {torch.cuda.device_count()} GPUs: use cpu,"
            " or see `saccade doctor`."
        )
    if dtype == "auto":
        stored = str(getattr(config, "dtype", None) or "bfloat16").removeprefix("torch.")
        dtype = stored if gpu and stored in PRECISIONS else "bfloat16" if gpu else "float32"
    return "cuda" if gpu else "cpu", int(index or 0) if gpu else None, dtype


def run_with(function: Callable[..., Any], command: str, several: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Call a function with the arguments of the command line; its docstring is the help.

    Args:
        function: The function; its first parameter is the model.
        command: Name of the command.
        several: Parameters that take several values, each with what the help shows for a value.
        arguments: Arguments after the subcommand.

    Raises:
        UsageError: An argument is wrong, or the function refuses one.
    """
    if not arguments:
        raise UsageError("MODEL must be given, got none: name the folder or the hub id of a language model.")
    parser = ArgumentParser(
        prog=f"saccade {command}",
        exit_on_error=False,
        allow_abbrev=False,
        description=(function.__doc__ or "").split("Args:")[0],
    )
    parser.add_function_arguments(function, as_positional=True, skip=set(several))
    for name, shown in several.items():
        parser.add_argument(f"--{name}", nargs="+", metavar=shown, type=str, help=_help(function, name))
    options = [name for name, item in signature(function).parameters.items() if item.default is not Parameter.empty]
    try:
        settings = parser.parse_args(list(arguments)).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise UsageError(one_line(error, options)) from error
    try:
        function(**settings)
    except ValueError as error:
        if raised_by_us(error):
            raise UsageError(one_line(error)) from error
        raise


def _help(function: Callable[..., Any], name: str) -> str:
    """The text of an argument in the docstring of a function."""
    text = " ".join((function.__doc__ or "").split()).split(f" {name}: ")[1].split(" Returns:")[0]
    after = [other for other in signature(function).parameters if f" {other}: " in text]
    return text.split(f" {after[0]}: ")[0] if after else text
