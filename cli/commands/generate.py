"""``saccade generate``: the answers of a model to files of prompts, as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

import saccade.inference
from saccade.cli.commands.model_arguments import (
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
from saccade.common.files import write_text
from saccade.common.progress import progress_bar
from saccade.datamodules import Prompts
from saccade.inference import Decoder, DecodingStats, Sampling
from saccade.inference.huggingface.models import context_length
from saccade.modules.language.construction import model_from_path

# penalties and sampling of the model's own configuration are left out, its EOS ids are kept
_PLAIN = GenerationConfig()


def generate(
    model: str,
    output: str = "answers.jsonl",
    decoder: str = "autoregressive",
    draft: str | None = None,
    skip: str = "auto",
    max_new_tokens: int = 256,
    max_prompts: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    dtype: Dtype = "auto",
    template: str = "auto",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    prompts: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Write a language model's answers to prompts into a file of JSON lines.

    A line has the prompt's `id` and `category`, the conversation with the answer (`messages`; where several turns are
    asked, `turns` and `answers`), and as `finish_reason` why the last answer ended: `stop`, the model ended it, or
    `length`. `saccade fit` trains models on such a file with the data module `ChatCorpus`, for example a draft model on
    its target's own answers. The file is written whole, when all answers are there.

    Args:
        model: Folder or Hugging Face hub id of a language model.
        output: The file to write.
        decoder: Name of a decoder, as in the files decoder/NAME.yaml.
        draft: Folder or hub id of a smaller model with the same tokenizer, for assisted and parallel decoding.
        skip: Which sub-layers self-speculative decoding skips: `auto`, or a file that `saccade search-layers` wrote.
        max_new_tokens: Most new tokens of an answer; it ends earlier where the model ends it.
        max_prompts: Most prompts, as many of each category; null for all.
        batch_size: Prompts decoded together.
        device: `auto`, `cpu`, `cuda`, or one GPU, as `cuda:1`.
        dtype: Type of the weights: `auto` is float32 on a processor, and on a GPU the type in which they are stored.
        template: Chat template: `auto` for the tokenizer's, `none` for plain text, or a Jinja file.
        temperature: 0 decodes greedily; above 0 draws tokens.
        top_k: With a temperature, keep the most likely tokens only; 0 keeps all.
        top_p: With a temperature, keep the most likely tokens up to this total probability.
        seed: Seed of drawn tokens; the batches do not change them.
        prompts: Files of prompts (JSON lines with `prompt`, `messages` or `turns`); none for the built-in prompts.

    Returns:
        The lines of the file.

    Raises:
        UsageError: A setting is wrong, or the model or the prompts cannot be used.
    """
    config = config_of_model(model)
    if config.model_type in VISION:
        raise UsageError(
            f"MODEL must be a text model, got one of type {config.model_type}: `saccade predict` writes the answers of"
            " vision-language models."
        )
    if decoder not in decoder_classes():
        known = ", ".join(decoder_classes())
        raise UsageError(
            f"--decoder must be one of {known}, got {decoder}{hint(decoder, decoder_classes()) or ': choose of these.'}"
        )
    check_draft([decoder], draft)
    check_count("max_new_tokens", max_new_tokens)
    check_count("batch_size", batch_size)
    chosen = decoder_settings(decoder, draft, skip)
    kind: type[Any] = getattr(saccade.inference, chosen["class_path"].rpartition(".")[2])
    accelerator, gpu, weights = hardware(device, dtype, config)
    data = Prompts(None if prompts is None else list(prompts), model, template, max_prompts=max_prompts)
    data.setup()
    network: Any = model_from_path(model)
    answering = _Answering(
        data,
        network.to(accelerator if gpu is None else f"{accelerator}:{gpu}", getattr(torch, weights)).eval(),
        kind(**chosen["init_args"]),
        max_new_tokens,
        Sampling(temperature, top_k, top_p, seed) if temperature else None,
    )
    rows = answering.rows(batch_size)
    write_text(Path(output), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    stats = answering.stats
    print(
        f"saccade: answers to {len(rows)} conversations are in {output}: {stats.new_tokens} tokens,"
        f" {stats.tokens_per_second:.0f} a second",
        file=sys.stderr,
    )
    return rows


class _Answering:
    """The answers to all conversations, turn by turn, those of one turn in batches of similar length."""

    def __init__(
        self, data: Prompts, model: Any, decoder: Decoder, max_new_tokens: int, sampling: Sampling | None
    ) -> None:
        self.data, self.model, self.decoder, self.sampling = data, model, decoder, sampling
        self.max_new_tokens = max_new_tokens
        self.answers: list[list[str]] = [[] for _ in data.conversations]
        ends: Any = model.generation_config.eos_token_id
        self.ends = {ends} if isinstance(ends, int) else set(ends or ())
        self.ended = [False] * len(data.conversations)
        self.stats = DecodingStats()

    def rows(self, batch_size: int) -> list[dict[str, Any]]:
        """Answer everything; return a line for each conversation that is answered."""
        conversations = self.data.conversations
        context = context_length(self.model)
        left_out: set[int] = set()
        with progress_bar(
            sum(len(each.turns) for each in conversations), "generating", enabled=sys.stdout.isatty()
        ) as bar:
            for turn in range(max(len(each.turns) for each in conversations)):
                asked = [
                    (self.data.encode(item, self.answers[item])[0], item)
                    for item, each in enumerate(conversations)
                    if len(each.turns) > turn and item not in left_out
                ]
                long = {item for ids, item in asked if context and len(ids) + self.max_new_tokens - 1 > context}
                left_out |= long
                fitting = sorted((each for each in asked if each[1] not in long), key=lambda each: len(each[0]))
                bar.advance(len(long))
                for start in range(0, len(fitting), batch_size):
                    batch = fitting[start : start + batch_size]
                    self._answer(batch)
                    bar.advance(len(batch))
        empty = [item for item, answers in enumerate(self.answers) if item not in left_out and not all(answers)]
        if empty:
            print(f"saccade: {len(empty)} conversations are left out, because an answer is empty", file=sys.stderr)
        if left_out:
            names = ", ".join(conversations[item].id for item in sorted(left_out)[:5])
            print(
                f"saccade: {len(left_out)} of {len(conversations)} conversations are left out, because the model's"
                f" context has no room for {self.max_new_tokens} more tokens: {names}",
                file=sys.stderr,
            )
        return [self._row(item) for item in range(len(conversations)) if item not in left_out | set(empty)]

    def _answer(self, batch: Sequence[tuple[list[int], int]]) -> None:
        sampling = self.sampling
        if sampling is not None:  # by the number of the conversation, so that batches do not change a text
            rows = [item for _, item in batch]
            sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed, rows=rows)
        out = self.decoder.generate(
            self.model,
            [ids for ids, _ in batch],
            max_new_tokens=self.max_new_tokens,
            sampling=sampling,
            do_sample=False,
            generation_config=_PLAIN,
        )
        self.stats += out.stats
        for (_, item), tokens in zip(batch, out.tokens, strict=True):
            self.ended[item] = tokens[-1] in self.ends
            written = tokens[:-1] if self.ended[item] else tokens
            self.answers[item].append(str(self.data.tokenizer.decode(written, skip_special_tokens=True)).strip())

    def _row(self, item: int) -> dict[str, Any]:
        conversation, answers = self.data.conversations[item], self.answers[item]
        row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
        if len(conversation.turns) == 1:
            row["messages"] = [*conversation.turns[0], {"role": "assistant", "content": answers[0]}]
        else:
            row |= {"turns": [turn[0]["content"] for turn in conversation.turns], "answers": answers}
        return row | {"finish_reason": "stop" if self.ended[item] else "length"}


def run(arguments: Sequence[str]) -> None:
    """Write answers with the settings of the command line.

    Args:
        arguments: Arguments after the subcommand.

    Raises:
        UsageError: An argument is wrong, or the model or the prompts cannot be used.
    """
    quieten()
    run_with(generate, "generate", {"prompts": "FILE"}, arguments)
