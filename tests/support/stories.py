"""stories260K, a really trained small Llama, read from llama2.c's legacy layout into transformers' classes."""

from __future__ import annotations

import json
import re
import struct
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.shared_data import shared_file

BOS = 1


@cache
def load_stories(dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """The model in evaluation mode; skips the calling test where the file is absent."""
    return read_llama2c(shared_file("lm/stories260K/stories260K.bin")).to(dtype)


def read_llama2c(path: Path) -> LlamaForCausalLM:
    """Reads a llama2.c legacy checkpoint: 7 int32 of header, then float32 weights, one kind after the other."""
    raw = path.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("7i", raw[:28])
    if vocabulary < 0:
        raise ValueError("this reader knows checkpoints whose output head is the embedding")
    head = dim // heads
    weights = np.frombuffer(raw, dtype=np.float32, offset=28)
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return torch.from_numpy(weights[at - count : at].copy()).reshape(shape)

    def halves(weight: torch.Tensor, count: int) -> torch.Tensor:
        # llama2.c rotates the pairs (0, 1), (2, 3), ..; transformers rotates (0, head / 2), (1, head / 2 + 1), ..
        return weight.reshape(count, head // 2, 2, dim).transpose(1, 2).reshape(count * head, dim)

    parts = {
        "embedding": take(vocabulary, dim),
        "input_layernorm": take(layers, dim),
        "q": take(layers, dim, dim),
        "k": take(layers, kv_heads * head, dim),
        "v": take(layers, kv_heads * head, dim),
        "o": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "gate": take(layers, hidden, dim),
        "down": take(layers, dim, hidden),
        "up": take(layers, hidden, dim),
        "norm": take(dim),
    }
    state = {"model.embed_tokens.weight": parts["embedding"], "model.norm.weight": parts["norm"]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        state[f"{name}.self_attn.q_proj.weight"] = halves(parts["q"][layer], heads)
        state[f"{name}.self_attn.k_proj.weight"] = halves(parts["k"][layer], kv_heads)
        for kind in ("v", "o"):
            state[f"{name}.self_attn.{kind}_proj.weight"] = parts[kind][layer]
        for kind in ("gate", "up", "down"):
            state[f"{name}.mlp.{kind}_proj.weight"] = parts[kind][layer]
        for kind in ("input_layernorm", "post_attention_layernorm"):
            state[f"{name}.{kind}.weight"] = parts[kind][layer]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"the checkpoint does not fit: missing {missing}, unexpected {unexpected}")
    return model


class StoriesTokenizer:
    """llama2.c's tokenizer file: pieces with scores; the pair with the best score is merged first.

    Args:
        path: ``tok512.bin``: longest piece (int32), then for every id score (float32), length (int32) and bytes.
    """

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        at = 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while at < len(raw):
            score, length = struct.unpack("fi", raw[at : at + 8])
            self.pieces.append(raw[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self._words: dict[str, list[int]] = {}
        self.ids = {piece: index for index, piece in reversed(list(enumerate(self.pieces)))}

    def encode(self, text: str) -> list[int]:
        """BOS and the ids of the text; bytes without a piece of their own become byte tokens."""
        # no piece of this file has a space behind its first character, so that words are merged on their own
        return [BOS, *(token for word in re.findall(r" [^ ]*", " " + text) for token in self._word(word))]

    def _word(self, word: str) -> list[int]:
        if word in self._words:
            return self._words[word]
        tokens: list[int] = []
        for character in word:
            piece = character.encode()
            tokens += [self.ids[piece]] if piece in self.ids else [byte + 3 for byte in piece]
        while True:
            pairs = [self.ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(tokens)]
            best = max(((self.scores[i], -at) for at, i in enumerate(pairs) if i >= 0), default=None)
            if best is None:
                self._words[word] = tokens
                return tokens
            at = -best[1]
            tokens[at : at + 2] = [pairs[at]]

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; BOS and EOS are nothing."""
        pieces = [bytes([t - 3]) if 3 <= t < 259 else self.pieces[t] for t in tokens if t not in (1, 2)]
        return b"".join(pieces).decode(errors="replace")


@cache
def stories_tokenizer() -> StoriesTokenizer:
    """The tokenizer; skips the calling test where the file is absent."""
    return StoriesTokenizer(shared_file("lm/stories260K/tok512.bin"))


@cache
def spec_bench_prompts(count: int, longest: int) -> tuple[tuple[int, ...], ...]:
    """The first ``count`` Spec-Bench questions as ids of the stories model, each cut to ``longest`` tokens."""
    tokenizer = stories_tokenizer()
    lines = shared_file("text/prompts/spec_bench_question.jsonl").read_text().splitlines()
    step = len(lines) // count  # spread over the six task groups
    texts = [json.loads(line)["turns"][0] for line in lines[: step * count : step]]
    return tuple(tuple(tokenizer.encode(text)[:longest]) for text in texts)
