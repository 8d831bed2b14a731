"""What a compressor needs to see of a prompt, recorded while the prompt is read, and the cache that follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.compression.observation import Observation, late_rows, observed_rows
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.attention import row_scores
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.recording import Recorder


class PromptObserver(Recorder):
    """Records how much the observed rows of every prompt attend to each of its keys, layer by layer.

    Args:
        compressor: It says how many rows are observed.
        lengths: Tokens of every prompt.
        visual: Places ``[n]`` of the visual tokens of every prompt; ``None`` for text.
        device: Where the scores are kept.
    """

    def __init__(
        self,
        compressor: CacheCompressor,
        lengths: Sequence[int],
        visual: Sequence[Tensor] | None,
        device: torch.device,
    ) -> None:
        self.compressor, self.lengths = compressor, list(lengths)
        self.visual = [torch.zeros(length, dtype=torch.bool, device=device) for length in lengths]
        for mask, places in zip(self.visual, visual or (), strict=False):
            mask[places.to(device)] = True
        self.rows = [
            observed_rows(length, mask, compressor.window) for length, mask in zip(lengths, self.visual, strict=True)
        ]
        self.mean: list[list[Tensor]] = [[] for _ in lengths]
        self.alive: list[list[Tensor]] = [[] for _ in lengths]
        self.late: list[list[Tensor]] = [[] for _ in lengths]
        self._layer, self._begun = 0, -1

    def add(self, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Adds the observed rows of one layer; layers come in their order in every forward."""
        if self.start != self._begun:
            self._begun, self._layer = self.start, 0
        for row, (first, last) in enumerate(self.rows):
            if len(self.mean[row]) == self._layer:
                width = self.lengths[row] if first < last else 0
                self.mean[row].append(torch.zeros(key.shape[1], width, device=key.device))
                self.alive[row].append(torch.zeros(key.shape[1], device=key.device))
                if self.compressor.looks_twice:
                    self.late[row].append(torch.zeros(key.shape[1], width, device=key.device))
            low, high = max(first, self.start), min(last, self.start + query.shape[2])
            if low < high:
                asked = query[row, :, low - self.start : high - self.start]
                factor = asked.shape[-1] ** -0.5 if scaling is None else scaling
                border = late_rows((first, last))
                apart = max(0, high - max(low, border)) if self.compressor.looks_twice else 0
                seen = key[row, :, :high]
                mean, alive, late = row_scores(asked, seen, low, factor, self.compressor.alive_share, apart)
                share = (high - low) / (last - first)
                self.mean[row][self._layer][:, :high] += share * mean
                self.alive[row][self._layer] += share * alive
                if apart:
                    self.late[row][self._layer][:, :high] += apart / (last - border) * late
        self._layer += 1

    def compressed(self, full: KVCache, capacity: int) -> RaggedCache:
        """The cache that the compressor leaves of the whole prompts, which is freed layer by layer.

        Args:
            full: The cache of the whole prompts.
            capacity: Tokens that each row may have, new ones included.
        """
        return RaggedCache(full, [self.compressor.plan(seen) for seen in self._seen()], self.lengths, capacity)

    def _seen(self) -> list[Observation]:
        return [
            Observation(mean, alive, mask, _segments(mask), rows, late)
            for mean, alive, mask, rows, late in zip(
                self.mean, self.alive, self.visual, self.rows, self.late, strict=True
            )
        ]


def _segments(visual: Tensor) -> Tensor:
    """Numbers runs of visual tokens from 0; text is -1."""
    begins = visual & ~torch.cat([visual.new_zeros(1), visual[:-1]])
    return torch.where(visual, begins.cumsum(0) - 1, -1)
