"""``saccade compare``: decoders of one model in one table, without a file of settings."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from saccade.cli import lightning_command
from saccade.cli.commands.compressor_arguments import compressor_settings
from saccade.cli.commands.model_arguments import (
    PRECISIONS,
    VISION,
    Dtype,
    check_draft,
    config_of_model,
    decoder_classes,
    decoder_settings,
    hardware,
    run_with,
)
from saccade.cli.errors import UsageError
from saccade.cli.quiet import quieten
from saccade.cli.suggestions import hint
from saccade.common.checks import check_count

_TRANSFORMERS = "transformers"


def compare(
    model: str,
    draft: str | None = None,
    skip: str = "auto",
    max_new_tokens: int = 128,
    max_prompts: int | None = 16,
    repeats: int = 3,
    batch_size: int = 1,
    device: str = "auto",
    dtype: Dtype = "auto",
    template: str = "auto",
    system: str | None = None,
    too_long: Literal["skip", "cut"] = "skip",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    name: str = "compare",
    runs_folder: str = "runs",
    prompts: Sequence[str] | None = None,
    decoders: Sequence[str] | None = None,
    compressors: Sequence[str] | None = None,
) -> list[str]:
    """Compare decoders on a model: speed beside autoregressive decoding and beside transformers' `generate`.

    Decodes prompts with every decoder, side by side, prints one table, and writes decoding.json (a row for each decoder
    and category of prompts, with acceptance, equality of texts and quality of answers), decoding.png and config.yaml
    into a run folder. `saccade validate --config` with that config.yaml repeats the run.

    Args:
        model: Folder or Hugging Face hub id of a language model or vision-language model.
        draft: Folder or hub id of a smaller model with the same tokenizer, for assisted and parallel decoding.
        skip: Which sub-layers self-speculative decoding skips: `auto`, or a file that `saccade search-layers` wrote.
        max_new_tokens: Most new tokens of an answer; it ends earlier where the model ends it.
        max_prompts: Most prompts, as many of each category; null for all.
        repeats: Timed passes, in which decoders take turns prompt by prompt; the table shows the range of speed-ups.
        batch_size: Prompts decoded together.
        device: `auto`, `cpu`, `cuda`, or one GPU, as `cuda:1`.
        dtype: Type of the weights: `auto` is float32 on a processor, and on a GPU the type in which they are stored.
        template: Chat template: `auto` for the tokenizer's, `none` for plain text, or a Jinja file.
        system: System prompt.
        too_long: What happens to a prompt for which the model's context has no room: `skip` leaves it out, `cut` leaves
            out tokens in its middle. Such prompts are named.
        temperature: 0 decodes greedily; above 0 draws tokens.
        top_k: With a temperature, keep the most likely tokens only; 0 keeps all.
        top_p: With a temperature, keep the most likely tokens up to this total probability.
        seed: Seed of drawn tokens.
        name: Name of the run; its folder is <runs_folder>/<name>/<time>.
        runs_folder: Folder of all runs.
        prompts: Files of prompts (JSON lines with `prompt`, `messages` or `turns`); none for the built-in prompts.
        decoders: Names of decoders, as in the files decoder/NAME.yaml; none for autoregressive, transformers,
            prompt_lookup, self_speculative, and with a draft assisted.
        compressors: Compressors of the key-value cache, as in the files compressor/NAME.yaml, each beside the full
            cache and with every decoder: a name, a name with its budget, as hybrid_kv=0.2, or class_path and init_args
            as in YAML; none for the full cache alone.

    Returns:
        The command line of the `validate` command that was run.

    Raises:
        UsageError: A setting is wrong, or the run fails because of one.
    """
    kind = config_of_model(model)
    names = _names(decoders, draft)
    for setting, value in (("max_new_tokens", max_new_tokens), ("repeats", repeats), ("batch_size", batch_size)):
        check_count(setting, value)
    if max_prompts is not None:
        check_count("max_prompts", max_prompts)
    accelerator, gpu, weights = hardware(device, dtype, kind)
    settings: dict[str, Any] = {
        "seed_everything": seed,
        "name": name,
        "runs_folder": runs_folder,
        "model": {
            "class_path": f"saccade.modules.{'VisionLanguageModel' if kind.model_type in VISION else 'LanguageModel'}",
            "init_args": {"path": model},
        },
        "data": {
            "class_path": "saccade.datamodules.Prompts",
            "init_args": {
                "files": None if prompts is None else list(prompts),
                "tokenizer": model,
                "template": template,
                "system": system,
                "max_prompts": max_prompts,
                "too_long": too_long,
            },
        },
        "trainer": {
            "accelerator": accelerator,
            "devices": 1 if gpu is None else [gpu],
            "precision": PRECISIONS[weights],
            "logger": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "saccade.callbacks.DecodingEvaluation",
                    "init_args": {
                        "decoders": {
                            each: decoder_settings(each, draft, skip) for each in names if each != _TRANSFORMERS
                        },
                        "max_new_tokens": max_new_tokens,
                        "max_prompts": None,
                        "batch_size": batch_size,
                        "repeats": repeats,
                        "transformers": _TRANSFORMERS in names,
                        "compressors": compressor_settings(compressors or ()) or None,
                        "sampling": {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
                        if temperature
                        else None,
                    },
                }
            ],
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "compare.yaml")
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        command = ["validate", "--config", str(file), "--verbose=false"]
        cli = lightning_command.run(command)
    if cli.run_folder is not None and lightning_command.is_first_rank():
        written = shlex.quote(os.path.relpath(cli.run_folder / "config.yaml"))
        print(f"saccade: repeat with: saccade validate --config {written}", file=sys.stderr)
    return command


def _names(decoders: Sequence[str] | None, draft: str | None) -> list[str]:
    """The names of the decoders to compare, each once; the baseline is measured in any case."""
    if decoders is None:
        return [
            "autoregressive",
            _TRANSFORMERS,
            "prompt_lookup",
            "self_speculative",
            *["assisted"] * (draft is not None),
        ]
    known = [*decoder_classes(), _TRANSFORMERS]
    names = [name for given in decoders for name in given.split(",") if name]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--decoders must be some of {', '.join(known)}, got {name}{hint(name, known) or ': choose of these.'}"
            )
    check_draft(names, draft)
    return list(dict.fromkeys(names))


def run(arguments: Sequence[str]) -> None:
    """Compare decoders with the settings of the command line.

    Args:
        arguments: Arguments after the subcommand.

    Raises:
        UsageError: An argument is wrong, or the model or the prompts cannot be used.
    """
    quieten()
    run_with(compare, "compare", {"prompts": "FILE", "decoders": "NAME", "compressors": "NAME"}, arguments)
