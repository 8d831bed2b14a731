"""Prompts: files of prompts, or the built-in set, in the chat form of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from saccade.common.checks import check_choice, check_count
from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.prompts.conversation import BUILT_IN, Conversation, chosen, read_conversations
from saccade.datamodules.prompts.media import Media, config_of, format_of, read_media
from saccade.datamodules.prompts.templates import ChatTemplate, read_template
from saccade.datamodules.text.tokenization import load_tokenizer
from saccade.datamodules.video.preprocessing import FORMATS, VisualFormat
from saccade.datamodules.video.tokenization import load_video_tokenizer


class Prompts(LightningDataModule):
    """Prompts for `validate`, for example to measure decoders with `DecodingEvaluation`.

    A file has one JSON object in each line, with one of

    - `prompt`: a text;
    - `messages`: a chat, objects with `role` (system, user, assistant) and `content`; if the last one is an
      assistant's, it is the answer;
    - `turns`: texts that are asked one after the other; the model's answers stay in the conversation (the form of
      Spec-Bench and MT-bench),

    and, all optional, `id`; `category`, without which it is the name of the file; `images`, a list of paths, and
    `video`, a path, relative to the file's folder; `answer`, a text that is right for the last turn, or a list of such
    texts; `answers`, a list of texts that are all right, or with `turns` a list with one entry for each turn: a text, a
    list, or null. Other keys are ignored.

    Batches are dictionaries of one conversation each: `input_ids` LongTensor [1, L], the first turn followed by an
    answer if one is known; `prompt_length` [1], `item` [1], the number of the conversation; `prompt_key` [1], a hash of
    its content; and for images or videos the tensors of the model. There are no `labels`: nothing is predicted. There
    is a validation part only. After `setup`, `tokenizer` is the tokenizer, `conversations` are the prompts and `visual`
    is the visual format of the model, or None.

    Args:
        files: Files of prompts. None uses the built-in set: 64 prompts of eight categories.
        tokenizer: Folder or Hugging Face hub id of a model, whose tokenizer and kind of input are used. None takes the
            `path` of the module that is validated.
        template: Chat template: `auto` for that of the tokenizer (if it has none, plain text), `none` for plain text,
            or the path of a Jinja file.
        system: System prompt, put before conversations that have none; None leaves that to the template.
        max_prompts: Most conversations, as many of each category; None for all.
        too_long: What happens to a prompt for which the model's context has no room: `skip` leaves it out, `cut` leaves
            out tokens in its middle. Both are counted, and the prompts are named. (A prompt with images or videos is
            always left out.)
        frames: Frames that are read of a video.
        max_pixels: Most pixels of an image or frame for a Qwen; 28 * 28 pixels are one token, 32 * 32 of Qwen3-VL.

    Raises:
        ValueError: A setting or a line of a file is invalid.
    """

    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self,
        files: list[str] | None = None,
        tokenizer: str | None = None,
        template: str = "auto",
        system: str | None = None,
        max_prompts: int | None = None,
        too_long: Literal["skip", "cut"] = "skip",
        frames: int = 8,
        max_pixels: int = 200_704,
    ) -> None:
        super().__init__()
        if files is not None and not files:
            raise ValueError("files must name files, got an empty list: give paths, or null for the built-in prompts.")
        if max_prompts is not None:
            check_count("max_prompts", max_prompts)
        check_choice("too_long", too_long, ("skip", "cut"))
        check_count("frames", frames)
        check_count("max_pixels", max_pixels)
        self.files = files
        self.tokenizer_source = tokenizer
        self.template = template
        self.system = system
        self.max_prompts = max_prompts
        self.too_long = too_long
        self.frames = frames
        self.max_pixels = max_pixels
        self.visual: VisualFormat | None = None
        self.conversations: list[Conversation] = []
        read_template(template)
        self._read = chosen(read_conversations(files or [BUILT_IN]), max_prompts)

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer, and write every first turn in the chat form (on all ranks, with the same result).

        Args:
            stage: Not used.

        Raises:
            ValueError: There is no tokenizer, a template refuses a prompt, or images or videos are given to a model
                that reads text only.
        """
        if self.conversations:
            return
        source = self.tokenizer_source or self._path_of_the_model()
        config = config_of(source)
        family = getattr(config, "model_type", "")
        video = family in FORMATS
        self.tokenizer = load_video_tokenizer(source, family) if video else load_tokenizer(source)  # type: ignore[arg-type]
        self.visual = format_of(config, source, self.tokenizer, self.max_pixels)
        self._template = ChatTemplate(self.tokenizer, self.template, source)
        for conversation in self._read:
            if self.visual is None and (conversation.images or conversation.video is not None):
                what = "images" if conversation.images else "video"
                kind = family or "a tokenizer without a model"
                raise ValueError(
                    f"{conversation.place}: {what} must be left out for a model that reads text only, got {kind} in"
                    f" {source}: give a vision-language model ({' or '.join(FORMATS)}), or remove the row."
                )
            if not (conversation.images or conversation.video):
                self._ids(conversation, [])
        self.conversations = self._read

    def _path_of_the_model(self) -> str:
        module = None if self.trainer is None else self.trainer.lightning_module
        path = getattr(module, "path", None)
        if not isinstance(path, str):
            raise ValueError(
                "tokenizer must be given where the model has no path, got None: set data.tokenizer to the folder of a"
                " model or tokenizer, for example runs/demo/latest/model."
            )
        return path

    @property
    def categories(self) -> list[str]:
        """The categories, in the order in which they first occur."""
        return list(dict.fromkeys(conversation.category for conversation in self._read))

    def encode(self, item: int, answers: Sequence[str] = ()) -> tuple[list[int], dict[str, Tensor]]:
        """Write a turn of a conversation in the chat form.

        Args:
            item: Number of the conversation.
            answers: The answers to the turns before it.

        Returns:
            Token ids up to the point where the model answers, and the tensors of images and videos.
        """
        conversation = self.conversations[item]
        media = None
        if conversation.images or conversation.video is not None:
            assert self.visual is not None  # noqa: S101 -- setup has refused it
            media = read_media(conversation, self.visual, self.frames)
        return self._ids(conversation, answers, media), {} if media is None else media.inputs

    def _ids(self, conversation: Conversation, answers: Sequence[str], media: Media | None = None) -> list[int]:
        messages = conversation.messages(answers)
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if media is None:
            ids = self._template.encode(messages, conversation.place)
        else:
            found = self._template.encode_visual(
                messages, media.marks, media.places(), conversation.place, media.as_text
            )
            ids = media.expanded(found)
        if not ids:
            raise ValueError(f"{conversation.place}: prompt must give at least one token, got none: write a text.")
        return ids

    def val_dataloader(self) -> BatchLoader:
        """Every conversation once, in order, on any number of devices."""
        trainer = self.trainer
        sampler = BatchSampler(
            len(self.conversations),
            1,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            train=False,
            seed=0,
        )
        return BatchLoader(_FirstTurns(self), sampler, 0, pin_memory=False)


class _FirstTurns(Dataset[dict[str, Tensor]]):
    """The first turn of every conversation, as a batch of one."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        seen: Counter[int] = Counter()
        self._keys = []
        for conversation in prompts.conversations:
            # a prompt that is there twice is two prompts
            self._keys.append(conversation.key + seen[conversation.key])
            seen[conversation.key] += 1

    def __len__(self) -> int:
        return len(self.prompts.conversations)

    def __getitem__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        (item,) = indices
        ids, inputs = self.prompts.encode(item)
        length = len(ids)
        answers = self.prompts.conversations[item].answers[0]
        if answers:
            as_text = {"add_special_tokens": False, "split_special_tokens": True}  # whatever an answer spells
            ids = ids + list(self.prompts.tokenizer(answers[0], **as_text)["input_ids"])
        return {
            "input_ids": torch.tensor([ids]),
            "prompt_length": torch.tensor([length]),
            "item": torch.tensor([item]),
            "prompt_key": torch.tensor([self._keys[item]]),
            **inputs,
        }
