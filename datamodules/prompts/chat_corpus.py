"""ChatCorpus: conversations with answers, in the chat form of a model, for training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from saccade.common.checks import check_count, check_fraction
from saccade.datamodules.loaders import BatchLoader, BatchSampler, with_a_batch
from saccade.datamodules.prompts.conversation import Conversation, read_conversations
from saccade.datamodules.prompts.templates import ChatTemplate, read_template
from saccade.datamodules.text.files import hashed_position
from saccade.datamodules.text.tokenization import check_same_tokenizer, load_tokenizer, tokenizer_digest

IGNORED = -100
"""Label of tokens that are not predicted."""

_Sample = tuple[list[int], int]


class ChatCorpus(LightningDataModule):
    """Conversations for training a language model to answer; the loss counts the tokens of the answers only.

    Files have the form that `Prompts` reads: JSON lines with `prompt`, `messages` or `turns`, here with `answer` or
    `answers`, or an assistant's message at the end of `messages`. `saccade generate` writes such files. Every turn with
    an answer, if all turns before it have one, is one sequence: the conversation up to there in the chat form, the
    answer, and the token that ends it. Where several answers are right, it is the first. A line whose `finish_reason`
    is `length` has a last answer that stops before its end, so no such token stands behind it.

    A conversation is in the training or in the validation part by a hash of its content, so that none changes its part
    when the files grow. Sequences are kept in memory.

    Batches are dictionaries, padded on the right to the longest sequence: LongTensors [B, L] `input_ids`,
    `attention_mask` and `labels`, which are -100 outside the answers. After `setup`, `tokenizer` is the tokenizer.
    There is no test part.

    Args:
        files: Files of conversations.
        tokenizer: Folder or Hugging Face hub id of a model, whose tokenizer is used. None takes the `path` of the
            module that is trained.
        template: Chat template: `auto` for that of the tokenizer (if it has none, plain text), `none` for plain text,
            or the path of a Jinja file.
        system: System prompt, put before conversations that have none; None leaves that to the template.
        sequence_length: Most tokens of a sequence; at least 2. An answer is cut there, and what has no room for any
            token of the answer is left out.
        batch_size: Sequences for each batch and device.
        validation_fraction: Share of the conversations for validation, above 0; at least one.
        seed: Seed of the split. It is independent of `seed_everything`, which changes the order of training.

    Raises:
        ValueError: A setting or a line of a file is invalid, or there are too few answers.
    """

    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self,
        files: list[str],
        tokenizer: str | None = None,
        template: str = "auto",
        system: str | None = None,
        sequence_length: int = 512,
        batch_size: int = 4,
        validation_fraction: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not files:
            raise ValueError("files must name files of conversations, got an empty list: give paths.")
        check_count("sequence_length", sequence_length, 2)
        check_count("batch_size", batch_size)
        check_fraction("validation_fraction", validation_fraction)
        self.files = files
        self.tokenizer_source = tokenizer
        self.template = template
        self.system = system
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.seed = seed
        read_template(template)
        self._read = read_conversations(files)
        for conversation in self._read:
            if conversation.images or conversation.video is not None:
                raise ValueError(
                    f"{conversation.place}: images and video must be left out, got a conversation with them: ChatCorpus"
                    " reads text only."
                )
        self._parts: dict[str, list[_Sample]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer and encode all answers (on all ranks, with the same result).

        Args:
            stage: Not used.

        Raises:
            ValueError: There is no tokenizer, a template refuses a conversation, or there are fewer than two answers.
        """
        if self._parts:
            return
        source = self.tokenizer_source or getattr(getattr(self.trainer, "lightning_module", None), "path", None)
        if not isinstance(source, str):
            raise ValueError(
                "tokenizer must be given where the model has no path, got None: set data.tokenizer to the folder of a"
                " model."
            )
        self.tokenizer = load_tokenizer(source)
        self._template = ChatTemplate(self.tokenizer, self.template, source)
        found = [(self._samples(conversation), conversation.key) for conversation in self._read]
        kept = sorted(
            ((hashed_position(self.seed, "split", str(key)), samples) for samples, key in found if samples),
            key=lambda entry: entry[0],
        )
        if len(kept) < len(found):
            rank_zero_info(
                f"saccade: {len(found) - len(kept)} of {len(found)} conversations in files are left out: they have no"
                f" answer, or none that begins within sequence_length={self.sequence_length}."
            )
        if len(kept) < 2:
            raise ValueError(
                f"files must have at least two conversations with an answer, got {len(kept)}: write answers with"
                " `saccade generate`, or raise sequence_length."
            )
        held_out = sum(position < self.validation_fraction for position, _ in kept)
        held_out = min(max(held_out, 1), len(kept) - 1)
        parts = {"validation": kept[:held_out], "train": kept[held_out:]}
        self._parts = {part: [sample for _, samples in each for sample in samples] for part, each in parts.items()}

    def _samples(self, conversation: Conversation) -> list[_Sample]:
        """The tokens of each turn with an answer, and where the answer begins."""
        found: list[_Sample] = []
        answers: list[str] = []
        for turn, known in enumerate(conversation.answers):
            if not known:
                break
            messages = conversation.messages(answers)
            if self.system is not None and messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": self.system})
            ids = self._template.encode(messages, conversation.place)
            start = len(ids)
            cut = conversation.cut and turn + 1 == len(conversation.answers)
            ids += self._template.encode_answer(messages, known[0], conversation.place, ended=not cut)
            if start < min(len(ids), self.sequence_length):
                found.append((ids[: self.sequence_length], start))
            answers.append(known[0])
        return found

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training part is too small for one batch on every device.
        """
        what = f"{len(self._parts['train'])} answers of the training part"
        return with_a_batch(self._loader("train"), self.batch_size, what, "answers")

    def val_dataloader(self) -> BatchLoader:
        """Every answer of the validation part once, in order, on any number of devices."""
        return self._loader("validation")

    def state_dict(self) -> dict[str, Any]:
        """Return the digest of the tokenizer, for the checkpoint."""
        return {"tokenizer": tokenizer_digest(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained with another tokenizer.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The tokenizer of the checkpoint differs, so token numbers have another meaning.
        """
        check_same_tokenizer(state_dict["tokenizer"], self.tokenizer)

    def _loader(self, part: str) -> BatchLoader:
        trainer = self.trainer
        samples = _Samples(self._parts[part], self.tokenizer)
        sampler = BatchSampler(
            len(samples),
            self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            train=part == "train",
            seed=int(os.environ.get("PL_GLOBAL_SEED", self.seed)),
        )
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return BatchLoader(samples, sampler, 0, pin_memory=on_gpu)


class _Samples(Dataset[dict[str, Tensor]]):
    """Sequences of different lengths, padded to batches."""

    def __init__(self, samples: Sequence[_Sample], tokenizer: PreTrainedTokenizerFast) -> None:
        self.samples = samples
        pad = tokenizer.pad_token_id
        self.pad = tokenizer.eos_token_id if pad is None else pad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = [self.samples[index] for index in indices]
        length = max(len(ids) for ids, _ in chosen)
        input_ids = torch.tensor([ids + [self.pad] * (length - len(ids)) for ids, _ in chosen])
        places = torch.arange(length)
        inside = places < torch.tensor([[len(ids)] for ids, _ in chosen])
        answers = inside & (places >= torch.tensor([[start] for _, start in chosen]))
        return {
            "input_ids": input_ids,
            "attention_mask": inside.long(),
            "labels": input_ids.masked_fill(~answers, IGNORED),
        }
