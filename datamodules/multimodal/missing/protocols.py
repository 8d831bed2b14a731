"""The missing-data protocols of the field, and ours: what is gone in training, and what is tested."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import (
    PATTERNS,
    Condition,
    Kind,
    MissingProtocol,
    curve,
    patterns,
    take_away,
    triple,
)
from saccade.datamodules.multimodal.missing.random_masks import uniform
from saccade.datamodules.multimodal.missing.shares import assign_patterns, shares_of

TENTHS = tuple(round(0.1 * step, 1) for step in range(11))
_KEPT = torch.tensor([[name in pattern for name in MODALITIES] for pattern in PATTERNS])


def _check_rates(name: str, rates: Sequence[float]) -> None:
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise ValueError(f"{name}: must be numbers between 0 and 1, at least one, but is {list(rates)}")


def _check_once(name: str, tests: Sequence[object]) -> None:
    if len(set(tests)) < len(tests):
        raise ValueError(f"{name}: must name each test once, but is {list(tests)}")


def _drawn(batch: MultimodalBatch, stream: str, seed: int, epoch: int, count: int) -> Tensor:
    return uniform(batch.key, f"protocol/{stream}", seed, epoch, count)


def _everything(batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """No rate and no absent modality: [B, 3] each."""
    rates = torch.zeros(len(batch), len(MODALITIES), device=batch.key.device, dtype=torch.float32)
    return rates, rates == 0


def _six_patterns(batch: MultimodalBatch, seed: int, epoch: int) -> Tensor:
    """One of the six patterns for each sample, bool [B, 3]."""
    chosen = (_drawn(batch, "pattern", seed, epoch, 1)[:, 0] * len(PATTERNS)).long()
    return _KEPT.to(batch.key.device)[chosen]


@dataclass
class NothingMissing(MissingProtocol):
    """Complete data in training and in test."""

    seed: int = 0

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """The batch as it is."""
        return batch

    def conditions(self) -> list[Condition]:
        """One: everything is there."""
        return [Condition("complete", "complete")]


@dataclass
class TwoTierMissing(MissingProtocol):
    """Missing parts and missing modalities together, one model for all tests. Ours, for T2DR.

    Training: each modality of a sample is left alone or loses parts at a rate of its own, uniform in 0 to 1, with equal
    chance; and a sample keeps all modalities or has one of the six patterns, with equal chance. Traps avoided: masks
    that modalities share, and samples of which nothing is left (about one in a hundred), which stay as they are.

    Args:
        tests: Which of the five. A: the same rate in all modalities, 0 to 0.9. B: the six patterns, and everything.
            C: the six patterns, with parts missing too. D: one contiguous block, which training has not shown. E: other
            rates in each modality.
        seed: Of training's masks.

    Raises:
        ValueError: A test has another name.
    """

    tests: list[str] = field(default_factory=lambda: ["A", "B", "C", "D", "E"])
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.tests if name not in ("A", "B", "C", "D", "E")]
        if unknown or not self.tests:
            raise ValueError(f"tests: must be some of A, B, C, D, E, but is {self.tests}")
        _check_once("tests", self.tests)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw both kinds of missing data."""
        loses = _drawn(batch, "loses", self.seed, epoch, 3) < 0.5
        rates = _drawn(batch, "rate", self.seed, epoch, 3) * loses
        whole = _drawn(batch, "whole", self.seed, epoch, 1) < 0.5
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, rates, present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Groups intra, inter, mixed, block and unbalanced, for the tests A to E."""
        found = []
        for test in self.tests:
            if test == "A":
                found += curve(TENTHS[:10], "intra")
            elif test == "B":
                found += patterns("inter")
            elif test == "C":
                found += patterns("mixed", (0.1, 0.3, 0.5, 0.7), complete=False)
            elif test == "D":
                found += curve((0.3, 0.5, 0.7), "block", "block")
            else:
                found += [triple((a, b, c), "unbalanced") for a, b, c in itertools.permutations((0.1, 0.3, 0.5))]
        return found


@dataclass
class RandomFeatureMissing(MissingProtocol):
    """P1: every position goes with the same chance, in training, validation and test (TFR-Net, EMT-DLFR, MMSA).

    One model for each rate, summed up by the area under the curve (`saccade.modules.metrics.auilc`). Trap avoided: the
    released loaders seed all modalities alike, so that aligned audio and vision lose exactly the same frames.

    Args:
        training_rate: In training and validation.
        rates: Tested. The protocol proper tests a model at its own rate only.
        seed: Of training's masks, which are drawn once, as in the released loaders.
    """

    training_rate: float = 0.5
    rates: list[float] = field(default_factory=lambda: list(TENTHS))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("training_rate", [self.training_rate])
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase at the training rate; the masks are the same in every epoch."""
        rates, present = _everything(batch)
        return take_away(batch, rates + self.training_rate, present, seed=self.seed)

    def conditions(self) -> list[Condition]:
        """One for each rate."""
        return curve(self.rates, "random features")


@dataclass
class RandomRateMissing(MissingProtocol):
    """P2: a rate of its own for each sample and modality, in half of them none; one model for all rates (LNLN).

    Trap avoided: in the released loader the draws behind a rate are the same in every epoch, and only one of its
    workers ever refreshes the rates. Here every sample's mask is new in every epoch.

    Args:
        rates: Tested, the same in all modalities.
        seed: Of training's masks.
    """

    rates: list[float] = field(default_factory=lambda: list(TENTHS[:10]))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw a rate for each modality of each sample, or none."""
        loses = _drawn(batch, "loses", self.seed, epoch, 3) < 0.5
        rates = _drawn(batch, "rate", self.seed, epoch, 3) * loses
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """One for each rate."""
        return curve(self.rates, "random rates")


@dataclass
class RandomModalityMissing(MissingProtocol):
    """P3: whole modalities go at a rate over the data set, and every sample keeps at least one (GCNet, IMDer).

    Trap avoided: dropping modalities independently and repairing the samples that have none does not reach the rate
    (0.459 for 0.5). The two exact samplers do; `independent` is there for comparison. Training and validation meet the
    rate exactly. The test draws for each sample by itself with the sampler's shares, so that it meets the rate on the
    average over samples and mask seeds.

    Args:
        rate: Missing modalities of all, 0 to 0.7; as every sample keeps one, 0.7 means two thirds.
        sampler: `gcnet` keeps one random modality of each sample and tops up at random until the rate is met. `imder`
            takes two away from one share of the samples and one from another, as IMDer's table has it. `independent`
            drops each with the chance `rate` and gives one back where all are gone.
        seed: Of the assignment.
    """

    rate: float = 0.3
    sampler: Literal["gcnet", "imder", "independent"] = "gcnet"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 0.7:
            raise ValueError(f"rate: must lie between 0 and 0.7, as every sample keeps a modality, but is {self.rate}")
        if self.sampler not in ("gcnet", "imder", "independent"):
            raise ValueError(f"sampler: must be gcnet, imder or independent, but is {self.sampler!r}")
        self._keys = torch.empty(0, dtype=torch.int64)
        self._kept = torch.empty(0, len(MODALITIES), dtype=torch.bool)

    def prepare(self, keys: Tensor, split: str) -> None:
        """Assign patterns to the samples of a split."""
        kept = assign_patterns(keys.cpu(), self.rate, self.sampler, self.seed)
        order = torch.cat([self._keys, keys.cpu()]).argsort(stable=True)
        self._kept = torch.cat([self._kept, kept])[order]
        self._keys = torch.cat([self._keys, keys.cpu()])[order]

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Take away what was assigned.

        Raises:
            ValueError: A sample was not there when the patterns were assigned.
        """
        keys = batch.key.cpu()
        place = torch.searchsorted(self._keys, keys).clamp(max=max(0, len(self._keys) - 1))
        if not len(self._keys) or bool((self._keys[place] != keys).any()):
            raise ValueError("protocol: it must see all samples before the first batch; call prepare(keys, split)")
        return take_away(batch, _everything(batch)[0], self._kept[place].to(batch.key.device))

    def conditions(self) -> list[Condition]:
        """The rate, and the six patterns and everything one by one."""
        return [_at_random(self.rate, self.sampler, "random modalities"), *patterns("modalities")]


def _at_random(rate: float, sampler: str, group: str) -> Condition:
    # MR is the field's word for the realised rate, which independent dropping does not have
    name = f"{'p' if sampler == 'independent' else 'MR'}={rate:g}"
    return Condition(name, group, rate, rate > 0, absent=shares_of(rate, sampler))


@dataclass
class FixedModalityMissing(MissingProtocol):
    """P4: the six patterns, each tested by itself, and everything (HME, CyIN, CorrKD, HRLF).

    Args:
        training_patterns: `complete` trains on complete data and validates on the seven patterns (HME); `all` gives
            every sample one of the seven patterns in both, in training a new one in every epoch (one model for all).
        seed: Of training's draws.
    """

    training_patterns: Literal["complete", "all"] = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.training_patterns not in ("complete", "all"):
            raise ValueError(f"training_patterns: must be complete or all, but is {self.training_patterns!r}")

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw one of seven patterns, or take nothing away."""
        rates, present = _everything(batch)
        if self.training_patterns == "complete":
            return take_away(batch, rates, present)
        return self._seven_patterns(batch, epoch)

    def validation(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Draw one of seven patterns, the same in every epoch."""
        return self._seven_patterns(batch, -1)

    def _seven_patterns(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        whole = _drawn(batch, "whole", self.seed, epoch, 1) < 1 / 7
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, _everything(batch)[0], present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """The six patterns, and everything."""
        return patterns("modalities")


@dataclass
class FrameDrop(MissingProtocol):
    """P5: frames go at the rates 0.1 to 1 (CorrKD, HRLF); at 1 nothing is left, and a model must still answer.

    Args:
        rates: Tested, the same in all modalities.
        seed: Of training's masks, whose rate is uniform in 0 to 1 for each sample.
    """

    rates: list[float] = field(default_factory=lambda: list(TENTHS[1:]))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw one rate for each sample; one of which nothing would be left stays as it is."""
        rates = _drawn(batch, "rate", self.seed, epoch, 1).expand(-1, 3)
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """One for each rate."""
        return curve(self.rates, "frames")


@dataclass
class PatternDropout(MissingProtocol):
    """P6: with a certain chance a training sample gets one of the six patterns (MPLMM).

    Args:
        drop_rate: The chance.
        seed: Of training's draws.
    """

    drop_rate: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("drop_rate", [self.drop_rate])

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw a pattern, or take nothing away."""
        whole = _drawn(batch, "whole", self.seed, epoch, 1) >= self.drop_rate
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, _everything(batch)[0], present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """The six patterns, and everything."""
        return patterns("modalities")


@dataclass
class CiderMissing(MissingProtocol):
    """P7: the five kinds of CIDer.

    Trap avoided: steps and blocks are those of the words, whether or not audio and vision have rows for [CLS] and [SEP]
    too. Other than in the released code: it trains on `rmfm` whatever it tests, with a rate drawn for every position,
    which comes to half of the positions; and its `rmm` leaves some samples without any modality.

    Args:
        kind: `rmfm`: positions at a rate of the sample's own in training. `rmfm_same`: at one rate, as in P1. `rmm`:
            whole modalities, each by itself, at least one stays. `tmfm`: the same steps in all modalities. `stmfm`: one
            contiguous block, the same in all modalities. Both are meant for aligned data.
        training_rate: Of all kinds but `rmfm`.
        rates: Tested; for `rmm` the chance with which each modality goes.
        seed: Of training's masks.
    """

    kind: Literal["rmfm", "rmfm_same", "rmm", "tmfm", "stmfm"] = "rmfm"
    training_rate: float = 0.5
    rates: list[float] = field(default_factory=lambda: list(TENTHS[:10]))
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("rmfm", "rmfm_same", "rmm", "tmfm", "stmfm"):
            raise ValueError(f"kind: must be rmfm, rmfm_same, rmm, tmfm or stmfm, but is {self.kind!r}")
        _check_rates("training_rate", [self.training_rate])
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    @property
    def _erasure(self) -> Kind:
        return {"tmfm": "same_steps", "stmfm": "same_block"}.get(self.kind, "random")  # type: ignore[return-value]

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Take away as the kind says."""
        rates, present = _everything(batch)
        if self.kind == "rmm":
            chance = _drawn(batch, "modality", self.seed, epoch, 3)
            kept = chance >= self.training_rate
            # where all would go, the one with the best draw stays
            present = kept | (chance == chance.max(1, keepdim=True).values)
        elif self.kind == "rmfm":
            rates = _drawn(batch, "rate", self.seed, epoch, 1).expand(-1, 3)
        else:
            rates = rates + self.training_rate
        drawn = self.kind in ("rmm", "rmfm")  # the rate of the others is asked for, even if it is 1
        return take_away(batch, rates, present, self._erasure, self.seed, epoch, spare=drawn)

    def conditions(self) -> list[Condition]:
        """One for each rate."""
        if self.kind == "rmm":
            return [_at_random(rate, "independent", "rmm") for rate in self.rates]
        return curve(self.rates, self.kind, self._erasure)


@dataclass
class RateTriples(MissingProtocol):
    """P8: other rates in each modality; training is clean for half of the samples (GIML).

    Args:
        triples: Tested rates of text, audio and vision.
        seed: Of training's masks.
    """

    triples: list[tuple[float, float, float]] = field(
        default_factory=lambda: [(0.0, 0.0, 0.0), *((a, b, c) for a, b, c in itertools.permutations((0.1, 0.3, 0.5)))]
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.triples or any(len(rates) != 3 for rates in self.triples):
            raise ValueError(f"triples: must be lists of three rates (text, audio, vision), but is {self.triples}")
        for rates in self.triples:
            _check_rates("triples", rates)
        _check_once("triples", [tuple(rates) for rates in self.triples])

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Draw a rate of 0, 0.1, ..., 1 for each modality, or leave the sample as it is."""
        clean = _drawn(batch, "clean", self.seed, epoch, 1) < 0.5
        rates = (_drawn(batch, "rate", self.seed, epoch, 3) * 11).floor() / 10
        rates = rates.masked_fill(clean, 0.0)
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """One for each triple."""
        return [triple((a, b, c), "rates") for a, b, c in self.triples]
