"""Search the layers of a saved model, as ``saccade search-layers`` does: its prompts are those of chats or of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from saccade.callbacks.layer_skip.search import LayerSkipResult, search_layers
from saccade.common.checks import check_count, check_place
from saccade.datamodules import Prompts
from saccade.datamodules.prompts.conversation import chosen
from saccade.datamodules.text.encoding import text_only
from saccade.datamodules.text.files import CorpusFile, matching_files, part_of, select, standard_library_files
from saccade.datamodules.text.reading import examine, text_blocks
from saccade.datamodules.text.tokenization import load_tokenizer
from saccade.inference.huggingface.models import context_length

COMPARED_PROMPTS = 16
"""Built-in prompts that ``saccade compare`` takes by default; a search takes others."""


def search_layers_of(
    model: str,
    output: str = "skip_layers.json",
    prompts: list[str] | None = None,
    text: list[str] | None = None,
    max_prompts: int = 8,
    prompt_length: int = 64,
    max_new_tokens: int = 128,
    trials: int = 200,
    finalists: int = 10,
    repeats: int = 3,
    rounds: int = 5,
    draft_length: int = 12,
    seed: int = 0,
    log: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> LayerSkipResult:
    """Search the sub-layers that self-speculative decoding skips in its draft, and write them to a file.

    The file is for `SelfSpeculative(skip=FILE)` with this model only. An interrupted search resumes when it is started
    again with the same settings. The result depends on the device: search where you decode.

    Args:
        model: Folder or hub id of a Llama-, Qwen2- or Qwen3-shaped causal language model, with its tokenizer.
        output: The skip file to write.
        prompts: Files of prompts (JSON lines with `prompt`, `messages` or `turns`, as for `saccade compare`), of which
            first turns are taken, in the chat form of the model. None takes built-in prompts if the tokenizer has a
            chat template, other ones than `saccade compare` does by default, and else the sources of Python's standard
            library, as `text`.
        text: Globs of text files, in place of `prompts`: pieces from their middle are the prompts. Use text that the
            model was not trained on.
        max_prompts: Most prompts.
        prompt_length: Tokens of each prompt from text.
        max_new_tokens: Most tokens generated for each prompt; at least 2.
        trials: Number of skip sets to estimate.
        finalists: Number of skip sets with the best estimates to time.
        repeats: Timings of each of those; the median is used.
        rounds: Timings of the fastest one and of autoregressive decoding from which the reported speed-up is made.
        draft_length: Largest number of draft tokens in a round.
        seed: Seed of the proposals.
        log: The journal of the search. None is `layer_search.jsonl` in the folder of the output.
        dtype: Precision of the weights; `auto` is float32 on a processor, and on a GPU that of the model's files.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The skip set and its costs.

    Raises:
        ValueError: The model cannot be loaded, there are no prompts, or a setting is outside its range.
    """
    for name, value in (("max_prompts", max_prompts), ("prompt_length", prompt_length)):
        check_count(name, value)
    given = prompts if isinstance(prompts, list) else [] if prompts is None else [prompts]
    for item in given:
        if str(item).isdigit() and not Path(str(item)).exists():
            raise ValueError(
                f"prompts must be files of prompts, got {item}: write max_prompts={item} for their number."
            )
    if prompts is not None and text is not None:
        raise ValueError("prompts must be left out where text is given, got both: keep one of them.")
    check_place("model", model)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if dtype == "auto" and place == "cpu":
        dtype = "float32"  # as `saccade compare`: a processor is slow with anything else
    tokenizer = load_tokenizer(model)
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model {model!r} ({reason}): name an exported model or a hub id.") from error
    try:
        network = network.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot use the device {place!r} ({reason}): choose another, for example cpu.") from error
    if text is None and (prompts is not None or tokenizer.chat_template):
        room = context_length(network)
        found = chat_prompts(
            model,
            prompts,
            max_prompts,
            without=COMPARED_PROMPTS if prompts is None else 0,
            longest=None if room is None else room - max_new_tokens,
        )
    else:
        found = prompts_of(held_out_files(text), tokenizer, max_prompts, prompt_length)
    return search_layers(
        network,
        found,
        output,
        log=log,
        trials=trials,
        finalists=finalists,
        repeats=repeats,
        rounds=rounds,
        max_new_tokens=max_new_tokens,
        draft_length=draft_length,
        seed=seed,
    )


def chat_prompts(
    tokenizer: str, files: Sequence[str] | None, count: int, *, without: int = 0, longest: int | None = None
) -> list[Tensor]:
    """Take prompts from files of prompts or the built-in set, in the chat form of a model.

    Args:
        tokenizer: Folder or hub id of the model.
        files: Files of prompts; ``None`` is the built-in set.
        count: Most prompts, as many of each category.
        without: Number of prompts, as many of each category, that are left out because something else takes them.
        longest: Most tokens of a prompt; longer ones are left out, and counted in a warning. ``None`` for any.

    Returns:
        The first turn of each conversation, ``[length]``.

    Raises:
        ValueError: A file is invalid, or no prompt is left.
    """
    data = Prompts(None if files is None else list(files), tokenizer=tokenizer)
    data.setup("validate")
    numbers = {id(conversation): number for number, conversation in enumerate(data.conversations)}
    taken = {id(conversation) for conversation in chosen(data.conversations, without)}
    others = [conversation for conversation in data.conversations if id(conversation) not in taken]
    if not others:
        raise ValueError(f"prompts must be more than the {without} that are left out, got {len(taken)}: give more.")
    found = [torch.tensor(data.encode(numbers[id(item)])[0]) for item in chosen(others, count)]
    fitting = [ids for ids in found if longest is None or len(ids) <= longest]
    if not fitting:
        raise ValueError(
            f"prompts must leave room for max_new_tokens in the model's context, got none with at most {longest}"
            " tokens: lower max_new_tokens, or give shorter prompts."
        )
    if left_out := len(found) - len(fitting):
        rank_zero_warn(f"saccade: the layer search leaves out {left_out} of {len(found)} prompts, which are too long.")
    return fitting


def held_out_files(text: Sequence[str] | None = None) -> list[CorpusFile]:
    """Find the files to take prompts from.

    Args:
        text: Globs of text files; ``None`` is the validation part of the embedded corpus, as ``TextCorpus`` splits it.
    """
    if text is not None:
        return select(matching_files(text), None, None, 0)
    files = [file for file in standard_library_files() if part_of(file.name, 0.05, 0.05, 0) == "validation"]
    return select(files, None, None, 0)


def prompts_of(
    files: Sequence[CorpusFile], tokenizer: PreTrainedTokenizerFast, count: int, length: int
) -> list[Tensor]:
    """Take prompts from text files: windows spread over the files, and over each file if there are fewer files.

    Files are read as ``TextCorpus`` reads them: without byte order marks, and special tokens that a text spells stay
    text.

    Args:
        files: The text files.
        tokenizer: Tokenizer of the model.
        count: Number of prompts.
        length: Tokens of each prompt.

    Returns:
        ``count`` prompts ``[length]``, or fewer if the text is too short.

    Raises:
        ValueError: Every file is shorter than one prompt.
    """
    each = -(-count // len(files))
    core = text_only(tokenizer)
    found: list[Tensor] = []
    for file in files:
        if len(found) >= count:
            break
        source = examine(file)
        document = "".join(block.text for block in text_blocks(source, [("all", source.size)]))
        ids = torch.tensor(core.encode(document, add_special_tokens=False).ids, dtype=torch.long)
        for window in range(min(each, len(ids) // length)):
            # the middle of each part, because files begin with licences and imports
            start = int((window + 0.5) / each * (len(ids) - length))
            found.append(ids[start : start + length])
    if not found:
        raise ValueError(f"no text file has {length} tokens: lower prompt_length, or give longer files.")
    return found[:count]
