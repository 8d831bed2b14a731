"""Missing-data protocols from the literature, and ours: what is erased in training, and which conditions are tested."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from saccade.common.checks import check_choice, check_share
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
        raise ValueError(f"{name} must be numbers between 0 and 1, got {list(rates)}: give at least one.")


def _check_once(name: str, tests: Sequence[object]) -> None:
    if len(set(tests)) < len(tests):
        raise ValueError(f"{name} must name each test once, got {list(tests)}: remove repetitions.")


def _drawn(batch: MultimodalBatch, stream: str, seed: int, epoch: int, count: int) -> Tensor:
    return uniform(batch.key, f"protocol/{stream}", seed, epoch, count)


def _everything(batch: MultimodalBatch) -> tuple[Tensor, Tensor]:
    """Rates of zero, and presence of all modalities: [B, 3] each."""
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
        """Return the batch unchanged."""
        return batch

    def conditions(self) -> list[Condition]:
        """Return one condition, without missing data."""
        return [Condition("complete", "complete")]


@dataclass
class TwoTierMissing(MissingProtocol):
    """Missing parts and missing modalities together, one model for all tests. Ours, for T2DR.

    In training each modality of a sample stays complete or loses parts, with equal probability, at a rate that is drawn
    uniformly from 0 to 1 for each modality. Independently, a sample keeps all modalities or has one of the six
    patterns, with equal probability. Masks of different modalities are independent. Samples of which nothing would be
    left (about one in a hundred) stay complete.

    Args:
        tests: Which of the five tests to run. A: the same rate in all modalities, 0 to 0.9. B: the six patterns, and
            complete data. C: the six patterns, with missing parts in the other modalities. D: one contiguous block,
            which does not occur in training. E: different rates in the modalities.
        seed: Seed of the training masks.

    Raises:
        ValueError: A test does not exist.
    """

    tests: list[str] = field(default_factory=lambda: ["A", "B", "C", "D", "E"])
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.tests if name not in ("A", "B", "C", "D", "E")]
        if unknown or not self.tests:
            raise ValueError(f"tests must be some of A, B, C, D, E, got {self.tests}: name at least one of them.")
        _check_once("tests", self.tests)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase parts and modalities at random."""
        loses = _drawn(batch, "loses", self.seed, epoch, 3) < 0.5
        rates = _drawn(batch, "rate", self.seed, epoch, 3) * loses
        whole = _drawn(batch, "whole", self.seed, epoch, 1) < 0.5
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, rates, present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return the groups intra, inter, mixed, block and unbalanced, for the tests A to E."""
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
    """P1: positions are erased with one probability in training, validation and test (TFR-Net, EMT-DLFR, MMSA).

    The protocol trains one model for each rate and reports the area under the curve (`saccade.modules.metrics.auilc`).
    Difference from the released loaders: those use one seed for all modalities, so that aligned audio and vision lose
    exactly the same frames; here masks of different modalities are independent.

    Args:
        training_rate: Rate in training and validation.
        rates: Rates of the test. The original protocol tests a model only at the rate of its training.
        seed: Seed of the training masks, which are the same in every epoch, as in the released loaders.
    """

    training_rate: float = 0.5
    rates: list[float] = field(default_factory=lambda: list(TENTHS))
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("training_rate", self.training_rate)
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase positions at the training rate, the same in every epoch."""
        rates, present = _everything(batch)
        return take_away(batch, rates + self.training_rate, present, seed=self.seed)

    def conditions(self) -> list[Condition]:
        """Return one condition for each rate."""
        return curve(self.rates, "random features")


@dataclass
class RandomRateMissing(MissingProtocol):
    """P2: a random rate for each sample and modality, half of which stay complete; one model for all rates (LNLN).

    Difference from the released loader: there the draws for a rate are the same in every epoch, and only one of the
    workers draws new rates; here every mask is new in every epoch.

    Args:
        rates: Rates of the test, the same in all modalities.
        seed: Seed of the training masks.
    """

    rates: list[float] = field(default_factory=lambda: list(TENTHS[:10]))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase positions at a random rate for each modality of each sample."""
        loses = _drawn(batch, "loses", self.seed, epoch, 3) < 0.5
        rates = _drawn(batch, "rate", self.seed, epoch, 3) * loses
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return one condition for each rate."""
        return curve(self.rates, "random rates")


@dataclass
class RandomModalityMissing(MissingProtocol):
    """P3: a share of all modalities in the data set is erased, and every sample keeps at least one (GCNet, IMDer).

    The samplers `gcnet` and `imder` meet the rate exactly in training and validation. `independent`, for comparison,
    does not: erasing modalities independently and restoring one where all are erased gives 0.459 for a rate of 0.5. The
    test draws independently for each sample, with the shares of the sampler, and meets the rate on average over samples
    and mask seeds.

    Args:
        rate: Share of all modalities that is missing, 0 to 0.7; because every sample keeps one, 0.7 means two thirds.
        sampler: `gcnet` keeps one random modality of each sample and adds further ones at random until the rate is met.
            `imder` erases two modalities of some samples and one of others, with the shares of IMDer's table.
            `independent` erases each modality with the probability `rate` and restores one where all are erased.
        seed: Seed of the assignment.
    """

    rate: float = 0.3
    sampler: Literal["gcnet", "imder", "independent"] = "gcnet"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 0.7:
            raise ValueError(f"rate must be from 0 to 0.7, got {self.rate}: lower it, every sample keeps a modality.")
        check_choice("sampler", self.sampler, ("gcnet", "imder", "independent"))
        self._keys = torch.empty(0, dtype=torch.int64)
        self._kept = torch.empty(0, len(MODALITIES), dtype=torch.bool)

    def prepare(self, keys: Tensor, split: str) -> None:
        """Assign patterns to the samples of a split."""
        kept = assign_patterns(keys.cpu(), self.rate, self.sampler, self.seed)
        order = torch.cat([self._keys, keys.cpu()]).argsort(stable=True)
        self._kept = torch.cat([self._kept, kept])[order]
        self._keys = torch.cat([self._keys, keys.cpu()])[order]

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase the modalities that are assigned to the samples.

        Raises:
            ValueError: A sample was not given to `prepare`.
        """
        keys = batch.key.cpu()
        place = torch.searchsorted(self._keys, keys).clamp(max=max(0, len(self._keys) - 1))
        if not len(self._keys) or bool((self._keys[place] != keys).any()):
            raise ValueError("the protocol does not know the samples of this batch: call prepare(keys, split) before.")
        return take_away(batch, _everything(batch)[0], self._kept[place].to(batch.key.device))

    def conditions(self) -> list[Condition]:
        """Return the rate, the six patterns and complete data."""
        return [_at_random(self.rate, self.sampler, "random modalities"), *patterns("modalities")]


def _at_random(rate: float, sampler: str, group: str) -> Condition:
    # MR, the missing rate of the literature, is the realised rate, which `independent` does not meet
    name = f"{'p' if sampler == 'independent' else 'MR'}={rate:g}"
    return Condition(name, group, rate, rate > 0, absent=shares_of(rate, sampler))


@dataclass
class FixedModalityMissing(MissingProtocol):
    """P4: the six patterns and complete data, each tested separately (HME, CyIN, CorrKD, HRLF).

    Args:
        training_patterns: `complete` trains on complete data and validates on all seven patterns (HME). `all` gives
            every sample one of the seven patterns in training and validation, in training a new one in every epoch.
        seed: Seed of the training draws.
    """

    training_patterns: Literal["complete", "all"] = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("training_patterns", self.training_patterns, ("complete", "all"))

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase by one of the seven patterns, or not at all."""
        rates, present = _everything(batch)
        if self.training_patterns == "complete":
            return take_away(batch, rates, present)
        return self._seven_patterns(batch, epoch)

    def validation(self, batch: MultimodalBatch) -> MultimodalBatch:
        """Erase by one of the seven patterns, the same in every epoch."""
        return self._seven_patterns(batch, -1)

    def _seven_patterns(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        whole = _drawn(batch, "whole", self.seed, epoch, 1) < 1 / 7
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, _everything(batch)[0], present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return the six patterns and complete data."""
        return patterns("modalities")


@dataclass
class FrameDrop(MissingProtocol):
    """P5: frames are erased at the rates 0.1 to 1 (CorrKD, HRLF). At 1 a model must answer without any data.

    Args:
        rates: Rates of the test, the same in all modalities.
        seed: Seed of the training masks, whose rate is uniform from 0 to 1 for each sample.
    """

    rates: list[float] = field(default_factory=lambda: list(TENTHS[1:]))
    seed: int = 0

    def __post_init__(self) -> None:
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase frames at a random rate for each sample; a sample of which nothing would be left stays complete."""
        rates = _drawn(batch, "rate", self.seed, epoch, 1).expand(-1, 3)
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return one condition for each rate."""
        return curve(self.rates, "frames")


@dataclass
class PatternDropout(MissingProtocol):
    """P6: a training sample gets one of the six patterns with a given probability (MPLMM).

    Args:
        drop_rate: The probability.
        seed: Seed of the training draws.
    """

    drop_rate: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("drop_rate", self.drop_rate)

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase by a random pattern, or not at all."""
        whole = _drawn(batch, "whole", self.seed, epoch, 1) >= self.drop_rate
        present = whole | _six_patterns(batch, self.seed, epoch)
        return take_away(batch, _everything(batch)[0], present, seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return the six patterns and complete data."""
        return patterns("modalities")


@dataclass
class CiderMissing(MissingProtocol):
    """P7: the five kinds of missing data of CIDer.

    Steps and blocks refer to words, whether or not audio and vision have rows for [CLS] and [SEP]. Differences from the
    released code: that trains on `rmfm` for every test, with a rate drawn for each position, so that half of the
    positions are erased; and its `rmm` leaves some samples without any modality.

    Args:
        kind: `rmfm`: positions, in training at a random rate for each sample. `rmfm_same`: positions at one rate, as in
            P1. `rmm`: whole modalities, independently, of which at least one is kept. `tmfm`: the same steps in all
            modalities. `stmfm`: one contiguous block, the same in all modalities. The last two are for aligned data.
        training_rate: Rate in training of all kinds except `rmfm`.
        rates: Rates of the test; for `rmm` the probability of erasing each modality.
        seed: Seed of the training masks.
    """

    kind: Literal["rmfm", "rmfm_same", "rmm", "tmfm", "stmfm"] = "rmfm"
    training_rate: float = 0.5
    rates: list[float] = field(default_factory=lambda: list(TENTHS[:10]))
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("rmfm", "rmfm_same", "rmm", "tmfm", "stmfm"))
        check_share("training_rate", self.training_rate)
        _check_rates("rates", self.rates)
        _check_once("rates", self.rates)

    @property
    def _erasure(self) -> Kind:
        return {"tmfm": "same_steps", "stmfm": "same_block"}.get(self.kind, "random")  # type: ignore[return-value]

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase data of the kind."""
        rates, present = _everything(batch)
        if self.kind == "rmm":
            chance = _drawn(batch, "modality", self.seed, epoch, 3)
            kept = chance >= self.training_rate
            # at least the modality with the highest draw is kept
            present = kept | (chance == chance.max(1, keepdim=True).values)
        elif self.kind == "rmfm":
            rates = _drawn(batch, "rate", self.seed, epoch, 1).expand(-1, 3)
        else:
            rates = rates + self.training_rate
        drawn = self.kind in ("rmm", "rmfm")  # the other kinds keep to their rate, even if it is 1
        return take_away(batch, rates, present, self._erasure, self.seed, epoch, spare=drawn)

    def conditions(self) -> list[Condition]:
        """Return one condition for each rate."""
        if self.kind == "rmm":
            return [_at_random(rate, "independent", "rmm") for rate in self.rates]
        return curve(self.rates, self.kind, self._erasure)


@dataclass
class RateTriples(MissingProtocol):
    """P8: different rates in the modalities; half of the training samples stay complete (GIML).

    Args:
        triples: Rates of text, audio and vision for each test.
        seed: Seed of the training masks.
    """

    triples: list[tuple[float, float, float]] = field(
        default_factory=lambda: [(0.0, 0.0, 0.0), *((a, b, c) for a, b, c in itertools.permutations((0.1, 0.3, 0.5)))]
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.triples or any(len(rates) != 3 for rates in self.triples):
            raise ValueError(f"triples must be lists of three rates, got {self.triples}: give text, audio and vision.")
        for rates in self.triples:
            _check_rates("triples", rates)
        _check_once("triples", [tuple(rates) for rates in self.triples])

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        """Erase positions at a rate of 0, 0.1, ..., 1 for each modality, or not at all."""
        clean = _drawn(batch, "clean", self.seed, epoch, 1) < 0.5
        rates = (_drawn(batch, "rate", self.seed, epoch, 3) * 11).floor() / 10
        rates = rates.masked_fill(clean, 0.0)
        return take_away(batch, rates, _everything(batch)[1], seed=self.seed, epoch=epoch, spare=True)

    def conditions(self) -> list[Condition]:
        """Return one condition for each triple."""
        return [triple((a, b, c), "rates") for a, b, c in self.triples]
