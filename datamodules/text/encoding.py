"""Text as tokens: text that spells special tokens stays text, and long texts are cut without changing their tokens."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from saccade.datamodules.text.reading import Block

PIECE = 1 << 15  # characters of a long text that are encoded as one
_BATCH = 1 << 21  # characters that are encoded together: their tokens take about 150 MB of memory
_MOST_PIECES = 1 << 13  # that are encoded together, where they are short
_REACH = 4096  # characters before the end of a piece in which a place for the cut is looked for
_NEAR = 64  # characters on each side of a cut that show whether it changes tokens

# places for cuts, best first; most tokenizers split there before they merge characters
_PLACES = tuple(
    map(re.compile, (r"(?<=\w)(?=\n)", r"(?<=\w)(?=\s)", r"(?<=\s)(?=\S)", r"(?<=\w)(?=\W)", r"(?<=\W)(?=\w)"))
)


def text_only(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Copy a tokenizer's rules so that no text becomes a special token, and none is cut or padded.

    Special tokens that a text spells are encoded like any other text, with the same ids for all other tokens. Added
    tokens that are not special (runs of blanks, marks such as `<think>` in some vocabularies) stay what they are: they
    stand for their own text.

    Args:
        tokenizer: The tokenizer, which is not changed.

    Returns:
        The copy. It is for encoding only.
    """
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["truncation"] = rules["padding"] = rules["post_processor"] = None
    model = rules["model"]
    special = {token["content"] for token in rules["added_tokens"] if token["special"]} | {
        *tokenizer.all_special_tokens
    }
    # Some models find a special token in their own vocabulary, as a whole. There it gets a name that no text spells,
    # unless the model needs it: as the unknown token, as a single character, or as the result of a merge.
    vocabulary: Any = model["vocab"]
    merges = model.get("merges", [])
    needed = {"".join(merge) if isinstance(merge, list) else merge.replace(" ", "", 1) for merge in merges}
    needed.add(model.get("unk_token") if isinstance(vocabulary, dict) else vocabulary[model.get("unk_id") or 0][0])
    renamed = {
        token: f"\uffff{hashlib.sha256(token.encode()).hexdigest()}"
        for token in special
        if len(token) > 1 and token not in needed
    }
    for token in rules["added_tokens"]:
        token["content"] = renamed.get(token["content"], token["content"])
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(token, token): number for token, number in vocabulary.items()}
    else:  # Unigram: pieces with their scores
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
    core = Tokenizer.from_str(json.dumps(rules))
    core.encode_special_tokens = True
    return core


@dataclass(frozen=True)
class Piece:
    """A piece of a text that is encoded on its own.

    Attributes:
        part: The part of the split that it belongs to.
        text: The text, with `context` tokens of other text before it.
        context: Number of tokens at the beginning that are not part of the piece.
        last: Whether the document ends here.
        file: Number of the file that it is from.
    """

    part: str
    text: str
    context: int
    last: bool
    file: int = 0


class TextEncoder:
    """Encodes long texts in pieces, each document followed by the end-of-sequence token.

    Pieces end where the tokenizer splits the text anyway: around every cut a few characters are encoded with and
    without it. So the tokens are those of the whole text.

    Args:
        tokenizer: With an end-of-sequence token.

    Attributes:
        other_cuts: Cuts beside which tokens may differ from those of the whole text, because there was no better place.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.core = text_only(tokenizer)
        self.other_cuts = 0
        self._end = np.array([tokenizer.eos_token_id], dtype=np.int32)
        # a tokenizer may treat the beginning of a text in its own way: then pieces begin behind a line end
        self._contexts = [(text, self._ids(text)) for text in ("", "\n")]

    def pieces(self, blocks: Iterable[Block], file: int = 0) -> Iterator[Piece]:
        """Cut the text of one file into pieces.

        Args:
            blocks: The text.
            file: Number of the file.

        Yields:
            The pieces, in their order.
        """
        rest, context, count = "", "", 0
        for block in blocks:
            rest += block.text
            start = 0
            while len(rest) - start >= 2 * PIECE:
                place, (after, ids) = self._place(rest, start + PIECE)
                yield Piece(block.part, context + rest[start:place], count, False, file)
                start, context, count = place, after, len(ids)
            rest = rest[start:]
            if block.last:
                yield Piece(block.part, context + rest, count, True, file)
                rest, context, count = "", "", 0

    def encode(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """Encode pieces, on all processors.

        Args:
            pieces: The pieces.

        Returns:
            For each piece its tokens, int32 [N].
        """
        found = self.core.encode_batch_fast([piece.text for piece in pieces], add_special_tokens=False)
        found.reverse()
        tokens = []
        for piece in pieces:
            # an encoding takes much more memory than its ids
            ids = np.array(found.pop().ids, dtype=np.int32)[piece.context :]
            tokens.append(np.concatenate([ids, self._end]) if piece.last else ids)
        return tokens

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.core.encode(text, add_special_tokens=False).ids
        return ids

    def _place(self, text: str, wanted: int) -> tuple[int, tuple[str, list[int]]]:
        """The place of a cut not far before a wanted one, and the context for the text behind it with its tokens."""
        start = wanted - _REACH
        found = [[match.start() for match in pattern.finditer(text, start, wanted)][:-3:-1] for pattern in _PLACES]
        candidates = [place for places in found for place in places]
        for place in candidates:
            left, right = text[place - _NEAR : place], text[place : place + _NEAR]
            head, whole = self._ids(left), self._ids(left + right)
            for context, ids in self._contexts:
                if head + self._ids(context + right)[len(ids) :] == whole:
                    return place, (context, ids)
        self.other_cuts += 1
        return next(iter(candidates), wanted), self._contexts[0]


def in_batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces so that each group is encoded together, in bounded memory.

    Args:
        pieces: The pieces.

    Yields:
        At least one piece each time, in their order.
    """
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH or len(batch) >= _MOST_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
