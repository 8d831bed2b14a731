"""A prompt that is read once, and any number of compressed caches made of its whole cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference import CacheCompressor
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.observation import Observation, attention_scores, late_rows, observed_rows
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.recording import Recorder
from saccade.inference.engine.session import Session
from saccade.inference.trees import MAX_NODES

WIDEST = 128
"""Last rows whose queries are kept, so the widest window that a compressor may observe."""


@dataclass(frozen=True)
class Outcome:
    """What a cache makes of a known answer.

    Args:
        log_probability: Of each token of the answer, given those before it.
        right: Whether it is the best token there. If all are, greedy decoding writes the answer.
        device_bytes: Size of the cache on the device, with room for the answer.
        host_bytes: In host memory.
    """

    log_probability: list[float]
    right: list[bool]
    device_bytes: int
    host_bytes: int


class _Queries(Recorder):
    """Keeps the last queries of every layer.

    Args:
        rows: How many.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.layers: list[tuple[Tensor, float]] = []

    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Keeps those of one layer."""
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.layers.append((query[0, :, -self.rows :].clone(), factor))


class Reading:
    """One prompt in the whole cache, with what compressors want to see of it.

    Args:
        model: The model, on its device.
        prompt: Token ids.
        room: Most tokens that follow.
        widest: Last rows whose queries are kept.
    """

    def __init__(self, model: nn.Module, prompt: Sequence[int], room: int, widest: int = WIDEST) -> None:
        self.length = len(prompt)
        # one piece, so that the last queries are those of the one forward
        settings = EngineConfig("eager", prefill_chunk=max(self.length, 1), check_model=False)
        self._session = Session(model, self.length + room, pool=EnginePool(settings))
        queries = _Queries(widest)
        with queries.recording(0):
            self.first = self._session.prefill([list(prompt)])[0]
        if not isinstance(self._session.storage, KVCache):
            raise TypeError("a session without a compressor has a whole cache behind its prefill")
        self.full, self.queries = self._session.storage, queries.layers
        self._seen: dict[tuple[int, float, int], Observation] = {}

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *error: Any) -> None:
        self._session.close()
        self.full.clear()

    def observation(self, compressor: CacheCompressor, length: int | None = None) -> Observation:
        """What a compressor sees of the prompt; computed once for every window.

        Args:
            compressor: It says how many rows are observed.
            length: Tokens that count as the prompt, from its beginning; ``None`` is all of it.

        Raises:
            ValueError: The rows reach back further than queries are kept.
        """
        n = self.length if length is None else length
        key = (compressor.window, compressor.alive_share, n)
        if key not in self._seen:
            device = self.first.device
            visual, segments = torch.zeros(n, dtype=torch.bool, device=device), torch.full((n,), -1, device=device)
            layers = range(len(self.queries))
            if compressor.window == 0:
                heads = [self.full.buffers(layer)[0].shape[1] for layer in layers]
                self._seen[key] = Observation.unobserved(heads, visual, segments)
            else:
                rows = observed_rows(n, visual, compressor.window)
                found = [self._scores(layer, *rows, compressor.alive_share) for layer in layers]
                mean, alive, late = ([parts[part] for parts in found] for part in range(3))
                self._seen[key] = Observation(mean, alive, visual, segments, rows, late)
        return self._seen[key]

    def _scores(self, layer: int, first: int, end: int, alive_share: float) -> tuple[Tensor, ...]:
        query, scaling = self.queries[layer]
        offset = self.length - query.shape[1]
        if first < offset:
            raise ValueError(
                f"window must reach back at most {query.shape[1]} rows, got {self.length - first}: lower it."
            )
        keys = self.full.buffers(layer)[0][0, :, :end]
        late = end - late_rows((first, end))
        return attention_scores(query[:, first - offset : end - offset], keys, first, scaling, alive_share, late)

    def cache(self, plan: Plan, length: int | None = None) -> RaggedCache:
        """The compressed cache of a plan; the whole one stays as it is.

        Args:
            plan: What is kept.
            length: Tokens that count as the prompt.
        """
        shared = copy.copy(self.full)  # a compressed cache lets go of the layers of the one that it is given
        shared.keys, shared.values = list(self.full.keys), list(self.full.values)
        return RaggedCache(shared, [plan], [self.length if length is None else length], self._session.capacity)

    def outcome(self, cache: RaggedCache, answer: Sequence[int], asked: Sequence[int] = ()) -> Outcome:
        """How a cache goes on with a known answer.

        The first token of the answer follows from the prefill, before anything is compressed, unless the question comes
        behind the compression.

        Args:
            cache: Compressed, of this prompt.
            answer: Token ids.
            asked: Tokens of the prompt that are read behind the compression.
        """
        tokens = [*asked, *answer][:-1]
        logits = [] if asked else [self.first[None]]
        for start in range(0, len(tokens), MAX_NODES):
            logits.append(self._step(cache, tokens[start : start + MAX_NODES], self.length - len(asked) + start))
        scores = torch.cat(logits)[-len(answer) :].float().log_softmax(-1)
        wanted = torch.tensor(list(answer), device=scores.device)
        chosen = scores.gather(1, wanted[:, None])[:, 0]
        right = scores.argmax(-1) == wanted
        return Outcome(chosen.tolist(), right.tolist(), cache.bytes, cache.host_bytes)

    def _step(self, cache: RaggedCache, tokens: Sequence[int], start: int) -> Tensor:
        """Logits ``[tokens, vocabulary]`` of tokens behind ``start`` others."""
        session = self._session
        session.storage, session.lengths = cache, [start]
        session.cache = session_cache(cache, len(self.queries))
        ids = torch.tensor([list(tokens)], device=self.first.device)
        return session.forward(ids)[0]
