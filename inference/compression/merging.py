"""Averages deleted keys and values into kept ones (LOOK-M, arXiv 2406.18139, "pivotal" merging)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_PIECE = 1 << 23  # similarities at once


@dataclass(frozen=True)
class Merging:
    """Every deleted position is averaged into the kept one whose key has the highest cosine to its own.

    As in the authors' code, it is first averaged with its kept position, so that it weighs half; then the kept position
    and all that came to it are averaged. Keys have their rotary positions, and keep them.

    Args:
        groups: ``[N]`` int64: a position is merged only into one of the same group, as visual into visual; ``None``:
            into any.
    """

    groups: Tensor | None = None

    def targets(self, keys: Tensor, kept: Tensor) -> Tensor:
        """The kept position into which each position is averaged.

        Args:
            keys: ``[N, D]`` of one head.
            kept: ``[kept]`` int64, ascending.

        Returns:
            ``[N]`` int64: of a kept position itself; -1 where nothing of the group is kept.
        """
        if not len(kept):
            return torch.full((len(keys),), -1, device=keys.device)
        unit = torch.nn.functional.normalize(keys.float(), dim=-1)
        pivots = unit[kept].T
        groups = None if self.groups is None else self.groups.to(keys.device)
        found = []
        step = max(1, _PIECE // len(kept))
        for start in range(0, len(keys), step):
            likeness = unit[start : start + step] @ pivots
            if groups is not None:
                other = groups[start : start + step, None] != groups[kept]
                likeness = likeness.masked_fill_(other, -torch.inf)
            best = likeness.max(dim=-1)
            found.append(torch.where(best.values > -torch.inf, kept[best.indices], -1))
        target = torch.cat(found)
        target[kept] = kept
        return target

    def merge(self, keys: Tensor, values: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the kept positions after merging.

        Args:
            keys: ``[N, D]`` of one head.
            values: ``[N, D']`` of the same head.
            kept: ``[kept]`` int64, ascending.

        Returns:
            ``[kept, D]`` and ``[kept, D']`` in the types that were given.
        """
        target = self.targets(keys, kept)
        source = (target >= 0).index_fill(0, kept, False).nonzero()[:, 0]
        place = torch.searchsorted(kept, target[source])
        count = torch.ones(len(kept), device=keys.device).index_add_(
            0, place, torch.ones_like(place, dtype=torch.float)
        )
        merged = []
        for held in (keys, values):
            pivot = held[kept].float()
            halves = (held[source].float() + pivot[place]) / 2
            merged.append((pivot.index_add(0, place, halves) / count[:, None]).to(held.dtype))
        return merged[0], merged[1]
