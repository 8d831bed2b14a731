"""A read-only store of texts on the disk, which drafts may be copied from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer

from saccade.common.files import replacing
from saccade.inference.drafting.retrieval_store.text_index import BREAK
from saccade.inference.huggingface.models import text_config

_FORMAT = "1"
_FACTOR, _WORD = 0x9E3779B97F4A7C15, 1 << 64
_LEAST_RUN = 8
"""Tokens from which on a prompt or an answer that occurs in a store is no coincidence."""


@dataclass(frozen=True)
class StoredText:
    """A text for a store.

    Args:
        tokens: Its token ids; where it is an answer, with or without its prompt in front.
        prompt: Token ids of the prompt that it answers; empty for a text that answers none, such as a document. A store
            remembers which prompts it knows the answers of.
    """

    tokens: Sequence[int]
    prompt: Sequence[int] = ()


def prompt_fingerprint(tokens: Sequence[int]) -> str:
    """A hash of a prompt's token ids, 64 hexadecimal digits."""
    return hashlib.sha256(_array(tokens).tobytes()).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of what token ids mean to a tokenizer of transformers, 64 hexadecimal digits."""
    words = sorted((number, word) for word, number in tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


@dataclass
class TextStore:
    """Texts that do not change, with the n-grams that end in them.

    Made by :meth:`of` or :meth:`load`. On the disk it is a safetensors file whose header names the tokenizer and the
    prompts; the look-up table is made from the texts when it is first used.

    Args:
        tokens: ``[tokens]`` int32, :data:`BREAK` behind every text.
        tokenizer: Fingerprint of the tokenizer, see :func:`tokenizer_fingerprint`.
        prompts: Fingerprints of the prompts that the texts answer.
        name: Where it comes from, for messages.
    """

    tokens: NDArray[np.int32]
    tokenizer: str
    prompts: frozenset[str] = frozenset()
    name: str = "the store"
    _tables: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, texts: Iterable[StoredText], tokenizer: Any) -> TextStore:
        """A store of some texts; where they say different things, the later ones count.

        Args:
            texts: The texts.
            tokenizer: The tokenizer that made them.

        Raises:
            ValueError: There is no token.
        """
        numbers: list[int] = []
        prompts = set()
        for text in texts:
            numbers += [*text.tokens, BREAK] if text.tokens else []
            if text.prompt:
                prompts.add(prompt_fingerprint(text.prompt))
        if not numbers:
            raise ValueError("texts must hold at least one token, got none: give texts to copy from.")
        return cls(_array(numbers), tokenizer_fingerprint(tokenizer), frozenset(prompts))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the store, whole or not at all.

        Args:
            path: The file, ``.safetensors``.

        Raises:
            ValueError: It cannot be written.
        """
        header = {"format": _FORMAT, "tokenizer": self.tokenizer, "prompts": json.dumps(sorted(self.prompts))}
        with replacing(path) as temporary:
            save_file({"tokens": torch.from_numpy(self.tokens)}, temporary, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextStore:
        """Reads a store. Nothing in the file is run.

        Args:
            path: A file that :meth:`save` has written.

        Raises:
            ValueError: There is no such file, it is incomplete, or it is none of these.
        """
        advice = "build it again with TextStore.of(texts, tokenizer).save(path)"
        if not Path(path).is_file():
            raise ValueError(f"store must be an existing file, got {path}: {advice}.")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT or list(file.keys()) != ["tokens"]:
                    raise ValueError(f"store {path} is no store of texts of format {_FORMAT}: {advice}.")
                tokens, prompts = file.get_tensor("tokens").numpy(), json.loads(header["prompts"])
                tokenizer = header["tokenizer"]
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"store {path} is cut off or damaged ({error}): {advice}.") from None
        if tokens.dtype != np.int32 or tokens.ndim != 1 or not len(tokens) or tokens[-1] != BREAK:
            raise ValueError(f"store {path} is cut off or damaged (its texts do not end): {advice}.")
        return cls(tokens, tokenizer, frozenset(prompts), f"store {path}")

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuses another tokenizer than that of the texts.

        Raises:
            ValueError: It is another one.
        """
        if tokenizer_fingerprint(tokenizer) != self.tokenizer:
            raise ValueError(
                f"{self.name} was made with another tokenizer than the model's: build it from texts that the model's "
                "tokenizer has split."
            )

    def check_model(self, model: nn.Module) -> None:
        """Refuses a model that does not know the tokens, or whose folder has another tokenizer.

        Args:
            model: The target. Of one without a folder with a tokenizer only the number of token ids is known.

        Raises:
            ValueError: A token is beyond its ids, or its tokenizer is another one.
        """
        folder = str(getattr(model, "name_or_path", ""))
        if folder not in self._checked and Path(folder, "tokenizer_config.json").is_file():
            self.check_tokenizer(AutoTokenizer.from_pretrained(folder))
            self._checked.add(folder)
        largest, size = int(self.tokens.max()), text_config(model).vocab_size
        if largest >= size:
            raise ValueError(
                f"{self.name} holds token {largest} and the model has {size} token ids, so it was made with another "
                "tokenizer: build it from texts that the model's tokenizer has split."
            )

    def check_unseen(self, prompts: Iterable[Sequence[int]], answers: Iterable[Sequence[int]] = ()) -> None:
        """Refuses a store that knows what is about to be measured.

        Args:
            prompts: Token ids of the prompts.
            answers: Token ids of known answers.

        Raises:
            ValueError: It answers one of the prompts, or holds one of the prompts or answers, if not very short.
        """
        for kind, texts in (("prompt", prompts), ("answer", answers)):
            for number, text in enumerate(texts):
                known = kind == "prompt" and prompt_fingerprint(text) in self.prompts
                if known or (len(text) >= _LEAST_RUN and self.holds(text)):
                    raise ValueError(
                        f"{self.name} knows {kind} {number} of those that are measured, so it would copy the answers: "
                        "build it from other texts."
                    )

    def holds(self, run: Sequence[int]) -> bool:
        """Whether some tokens stand in one of the texts, one behind the other."""
        needle, place = _array(run).tobytes(), -1
        while (place := self._bytes.find(needle, place + 1)) != -1:
            if place % 4 == 0:
                return True
        return False

    @cached_property
    def _bytes(self) -> bytes:
        return self.tokens.tobytes()

    def match(self, tail: Sequence[int], largest: int, least: int = 1) -> tuple[int, int]:
        """The longest n-gram at the end of some tokens that occurs, by a binary search for each size.

        Args:
            tail: The tokens.
            largest: Most tokens of the n-gram.
            least: Fewest tokens of the n-gram.

        Returns:
            Its size and where its last occurrence ends; size 0 if there is none.
        """
        for size in range(min(largest, len(tail)), least - 1, -1):
            gram = tail[-size:]
            keys, ends = self._table(size)
            key = 0
            for token in gram:
                key = (key * _FACTOR + token + 1) % _WORD
            place = int(np.searchsorted(keys, np.uint64(key)))
            if place < len(keys) and int(keys[place]) == key:
                end = int(ends[place])
                if self.tokens[end - size : end].tolist() == list(gram):  # two n-grams may share a key
                    return size, end
        return 0, 0

    def followers(self, end: int, count: int) -> list[int]:
        """Up to ``count`` tokens behind a place, of the same text."""
        found: list[int] = self.tokens[end : end + count].tolist()
        return found[: found.index(BREAK)] if BREAK in found else found

    def _table(self, size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The keys of all n-grams of a size, ascending, and where the last occurrence of each ends."""
        if size not in self._tables:
            keys = np.zeros(max(len(self.tokens) - size, 0), np.uint64)
            whole = np.ones(len(keys), bool)
            for place in range(size + 1):  # the token behind the n-gram must not be the end of its text
                part = self.tokens[place : place + len(keys)]
                whole &= part != BREAK
                if place < size:
                    keys = keys * np.uint64(_FACTOR) + (part.astype(np.int64) + 1).astype(np.uint64)
            ends = np.flatnonzero(whole) + size
            keys = keys[whole]
            order = np.argsort(keys, kind="stable")
            keys, ends = keys[order], ends[order]
            last = np.ones(len(keys), bool)
            last[:-1] = keys[1:] != keys[:-1]
            self._tables[size] = keys[last], ends[last]
        return self._tables[size]


def _array(tokens: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(tokens, dtype="<i4")
