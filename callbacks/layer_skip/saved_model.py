"""Search the layers of a saved model with prompts from text files, as ``saccade search-layers`` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from saccade.callbacks.layer_skip.search import LayerSkipResult, search_layers
from saccade.common.checks import check_count, check_place
from saccade.datamodules.text.files import CorpusFile, matching_files, part_of, select, standard_library_files


def search_layers_of(
    model: str,
    output: str = "skip_layers.json",
    text: list[str] | None = None,
    prompts: int = 8,
    prompt_length: int = 64,
    max_new_tokens: int = 64,
    trials: int = 200,
    finalists: int = 10,
    repeats: int = 3,
    draft_length: int = 12,
    gamma: float = 0.6,
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
        text: Globs of UTF-8 text files to take prompts from; use text that the model was not trained on. None uses
            the held-out files of the embedded corpus, the sources of Python's standard library.
        prompts: Number of prompts.
        prompt_length: Tokens of each prompt.
        max_new_tokens: Tokens generated for each prompt; at least 2.
        trials: Number of skip sets to estimate.
        finalists: Number of skip sets with the best estimates to time.
        repeats: Timings of each of those; the median is used.
        draft_length: Largest number of draft tokens in a round.
        gamma: Confidence below which drafting stops, 0 to 1.
        seed: Seed of the proposals.
        log: The journal of the search. None is `layer_search.jsonl` in the folder of the output.
        dtype: Precision of the weights; `auto` is that of the model's files.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The skip set and its costs.

    Raises:
        ValueError: The model cannot be loaded, the text is too short for a prompt, or a setting is outside its range.
    """
    for name, value in (("prompts", prompts), ("prompt_length", prompt_length)):
        check_count(name, value)
    check_place("model", model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the model {model!r} ({reason}): name an exported model or a hub id.") from error
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        network = network.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot use the device {place!r} ({reason}): choose another, for example cpu.") from error
    return search_layers(
        network,
        prompts_of(held_out_files(text), tokenizer, prompts, prompt_length),
        output,
        log=log,
        trials=trials,
        finalists=finalists,
        repeats=repeats,
        max_new_tokens=max_new_tokens,
        draft_length=draft_length,
        gamma=gamma,
        seed=seed,
    )


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
    files: Sequence[CorpusFile], tokenizer: PreTrainedTokenizerBase, count: int, length: int
) -> list[Tensor]:
    """Take prompts from text files: windows spread over the files, and over each file if there are fewer files.

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
    found: list[Tensor] = []
    for file in files:
        if len(found) >= count:
            break
        document = file.path.read_text(encoding="utf-8", errors="replace")
        ids = torch.tensor(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
        for window in range(min(each, len(ids) // length)):
            # the middle of each part, because files begin with licences and imports
            start = int((window + 0.5) / each * (len(ids) - length))
            found.append(ids[start : start + length])
    if not found:
        raise ValueError(f"no text file has {length} tokens: lower prompt_length, or give longer files.")
    return found[:count]
