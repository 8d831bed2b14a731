"""Pretrained models and prompts by kind, for the benchmarks that run on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.rows import existing, model_place, positive
from saccade.datamodules import Prompts
from saccade.inference import AssistedDecoding, Decoder, PromptLookup, SelfSpeculative

MULTI_TURN = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
"""Categories of MT-bench, which Spec-Bench takes as one of its six groups."""


def add_arguments(parser: argparse.ArgumentParser, count: int) -> None:
    """Adds the arguments that say what is decoded, and where.

    Args:
        parser: Of the benchmark.
        count: Default number of prompts of each kind.
    """
    parser.add_argument("--model", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--draft", type=model_place, help="folder of a draft model with the same tokenizer")
    parser.add_argument("--skip", type=existing, help="skip_layers.json of the target, for self-speculation")
    parser.add_argument("--label", help="what the models are, in words, for the rows; default: their folders")
    parser.add_argument("--prompts", type=existing, nargs="+", metavar="FILE", help="default: the built-in set")
    parser.add_argument("--kinds", nargs="+", help="kinds of prompts; default: all")
    parser.add_argument("--count", type=positive, default=count, help="prompts of each kind, spread over it")
    parser.add_argument("--longest", type=positive, default=1024, help="longer prompts lose their middle")
    parser.add_argument("--new-tokens", type=positive, default=128, help="at most; EOS ends a text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16"), help="bfloat16 on a GPU, else float32")


def label(chosen: argparse.Namespace) -> str:
    """The models and the type of their weights, in words."""
    names = [Path(place).name for place in (chosen.model, chosen.draft) if place]
    return f"{chosen.label or ' with '.join(names)}, {dtype(chosen)}"


def dtype(chosen: argparse.Namespace) -> str:
    """The type of the weights."""
    return chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")


def loaded(place: str, chosen: argparse.Namespace) -> PreTrainedModel:
    """A model on the device, in evaluation mode, that ends texts at EOS and follows no penalties."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype(chosen)))
    config = model.generation_config
    if config is not None:  # chat models have sampling settings and penalties of their own; these are greedy or stated
        config.do_sample, config.repetition_penalty = False, 1.0
        config.temperature = config.top_p = config.top_k = None
    return model.eval().to(chosen.device)


def fixed_decoders(draft: PreTrainedModel | None, skip: str | None, lengths: Sequence[int]) -> dict[str, Decoder]:
    """The decoders that draft, by name, with every draft length.

    Args:
        draft: For assisted decoding; ``None`` leaves it out.
        skip: A skip file of the target, for self-speculation; ``None`` leaves it out.
        lengths: The lengths.
    """
    found: dict[str, Decoder] = {}
    for length in lengths:
        found[f"PromptLookup {length}"] = PromptLookup(draft_length=length, control="fixed")
        if draft is not None:
            found[f"AssistedDecoding {length}"] = AssistedDecoding(
                draft, length, confidence_threshold=0.0, control="fixed"
            )
        if skip is not None:
            found[f"SelfSpeculative {length}"] = SelfSpeculative(
                skip, length, gamma=0.0, adaptive=False, control="fixed"
            )
    return found


def prompts_by_kind(
    files: Sequence[str] | None, tokenizer: str, count: int, longest: int, kinds: Sequence[str] | None = None
) -> dict[str, list[list[int]]]:
    """The first turns of a set of prompts in the model's chat form, as token ids, by kind.

    Args:
        files: JSON lines as for `saccade compare`; ``None`` for the built-in set.
        tokenizer: Folder or name of the tokenizer.
        count: Prompts of each kind, at equal distances.
        longest: Most tokens of a prompt; a longer one loses its middle.
        kinds: The kinds that are wanted; ``None`` for all.

    Raises:
        SystemExit: There is no prompt of a wanted kind.
    """
    data = Prompts(files, tokenizer=tokenizer, max_prompts=None)
    data.setup("validate")
    places: dict[str, list[int]] = {}
    for item, conversation in enumerate(data.conversations):
        kind = "multi-turn" if files and conversation.category in MULTI_TURN else conversation.category
        places.setdefault(kind, []).append(item)
    wanted = list(kinds or places)
    missing = [kind for kind in wanted if kind not in places]
    if missing:
        raise SystemExit(f"--kinds must be among {', '.join(places)}, got {', '.join(missing)}.")
    found = {}
    for kind in wanted:
        items = places[kind][:: max(1, len(places[kind]) // count)][:count]
        texts = [data.encode(item)[0] for item in items]
        half = longest // 2
        found[kind] = [list(ids) if len(ids) <= longest else [*ids[:half], *ids[half - longest :]] for ids in texts]
    return found
