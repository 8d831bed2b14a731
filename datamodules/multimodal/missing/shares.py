"""The assignment of missing modalities to samples, so that a given share of all modalities is missing (P3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import MODALITIES
from saccade.datamodules.multimodal.missing.base import without_some
from saccade.datamodules.multimodal.missing.random_masks import uniform

# IMDer: share of the samples that lose two modalities, by rate
_IMDER_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2 / 3)
_IMDER_TWO = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


def shares_of(rate: float, sampler: str) -> tuple[float, float]:
    """Return the mean shares of samples that lose one and two modalities.

    Args:
        rate: Share of all modalities that is missing; above 2/3 it counts as 2/3, except for `independent`.
        sampler: As in `RandomModalityMissing`.

    Returns:
        Share of the samples that lose one modality, and share of those that lose two.
    """
    if sampler == "independent":
        return 3 * rate * (1 - rate) ** 2, 3 * rate**2 * (1 - rate) + rate**3  # of three missing ones, one is restored
    rate = min(rate, 2 / 3)
    if sampler == "gcnet":
        goes = 1.5 * rate  # for each of the two modalities that may be missing
        return 2 * goes * (1 - goes), goes**2
    two = float(np.interp(rate, _IMDER_RATES, _IMDER_TWO))
    return max(0.0, 3 * rate - 2 * two), two


def assign_patterns(keys: Tensor, rate: float, sampler: str, seed: int) -> Tensor:
    """Choose for each sample which modalities are kept, so that a given share of all is missing.

    Args:
        keys: Keys of all samples [N].
        rate: Share of the 3 N modalities that is missing; above 2/3 it counts as 2/3.
        sampler: As in `RandomModalityMissing`.
        seed: Seed of the choice.

    Returns:
        The modalities that are kept, bool [N, 3]; at least one in each row.
    """
    count, size = len(keys), len(MODALITIES)
    chance = uniform(keys, "assign", seed, 0, size)
    first = torch.zeros(count, size, dtype=torch.bool)
    first[torch.arange(count), chance.argmax(1)] = True  # the modality that every sample keeps
    if sampler == "independent":
        kept = uniform(keys, "drop", seed, 0, size) >= rate
        return torch.where(kept.any(1, keepdim=True), kept, first)
    order = uniform(keys, "order", seed, 0, size)
    if sampler == "gcnet":
        kept = first.clone()
        wanted = round(count * size * (1 - min(rate, 2 / 3))) - count  # in addition to the first ones
        free = order.masked_fill(first, 2.0).flatten().argsort(stable=True)
        kept.view(-1)[free[: max(0, wanted)]] = True
        return kept
    one, two = shares_of(rate, "imder")
    sample_order = uniform(keys, "samples", seed, 0, 1)[:, 0].argsort(stable=True)
    rank = torch.empty(count, dtype=torch.long)
    rank[sample_order] = torch.arange(count)
    missing = torch.where(rank < round(two * count), 2, torch.where(rank < round((two + one) * count), 1, 0))
    return without_some(chance, missing)
