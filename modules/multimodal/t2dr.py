"""T2DR: two tiers against missing data, within a modality and between modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, MultimodalModule, Optimization, Prediction
from saccade.modules.multimodal.layers import CAS, IADR, SFP, InterAttn
from saccade.modules.multimodal.layers.inter_attn import Fusion
from saccade.modules.multimodal.layers.intra_attn import Variant
from saccade.modules.multimodal.layers.perceptron import mlp
from saccade.modules.multimodal.layers.sfp import Filling, Guess, Sequence, filled, filling_loss
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings

_STAGE = 0.3  # share of the run that the first of two stages takes
_SLOW = 0.1  # rate of the first tier in the second stage
_FIRST_TIER = ("text_encoder", "stems", "encoders")


@dataclass
class LossWeights:
    """Weights of T2DR's training loss beside that of the task, which is 1. Ours.

    Args:
        unimodal: Each modality's own result; half of it for a filled modality.
        scorer: How badly the scorer expected the errors of the modalities' own results.
        filling: Filled positions should be those of the complete sample.
        alignment: A clip's guessed shared features should be its own among those of the batch.
        complete: The same terms, task, unimodal and scorer, once more on the complete sample.
        agreement: The prediction should be that from the complete sample, which knows more than the label's noise.

    Raises:
        ValueError: A weight is negative.
    """

    unimodal: float = 0.3
    scorer: float = 0.1
    filling: float = 0.5
    alignment: float = 0.1
    complete: float = 0.5
    agreement: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"loss_weights.{name}: must not be negative, but is {value}")


@dataclass
class Fused:
    """What the second tier makes of a batch.

    Args:
        value: Predictions [B], or logits [B, C].
        weights: Of the modalities, summing to 1 [B, 3].
        results: Of each modality alone [B, 3], or [B, 3, C].
        vectors: Of the modalities, after filling [B, 3, width].
        guesses: What SFP guessed of each modality.
        expected: Logarithms of the errors that CAS expects of the results [B, 3].
    """

    value: Tensor
    weights: Tensor
    results: Tensor
    vectors: Tensor
    guesses: list[Guess]
    expected: Tensor


class T2DR(MultimodalModule):
    """Two-tier deficiency-resistant framework for incomplete multimodal learning.

    After T2DR (Lin et al., Findings of ACL 2025), of which only the abstract is public: the two tiers, their modules
    and their order are the paper's, all formulas are ours. First tier: `IADR` with `IntraAttn` makes one vector of each
    modality, resisting missing parts. Second tier: `SFP` fills absent modalities from what the present ones share,
    `CAS` gives each modality's own result and a weight, `InterAttn` lets them attend to each other accordingly. The
    prediction is the weighted mean of the modalities' own results and a correction from the fused vector.

    Args:
        width: Features of a position and of a modality's vector.
        heads: Attention heads in both tiers; must divide `width`.
        depth: Blocks of the first tier.
        dropout: In both tiers.
        intra_attention: How attention treats missing positions (`IntraAttn`); `none` also drops the missing marker.
        floor: First value of Intra-Attn's learned floors.
        first_tier: False replaces `IADR` by the mean of the available positions, for comparison.
        second_tier: False replaces `SFP`, `CAS` and `InterAttn` by the mean of the vectors, for comparison.
        filling: What stands for an absent modality (`SFP`).
        scorer: False gives all modalities the same weight, for comparison.
        filled_weight: What the weight of a filled modality is multiplied with (`CAS`), 0 to 1.
        fusion: `attention` (`InterAttn`) or `concatenation`, for comparison.
        stages: `joint` trains everything at once; `two` trains the first tier alone for 30 % of the run, with no
            modality missing, and at a tenth of its rate afterwards.
        loss_weights: Weights of the terms; None takes the defaults.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token numbers; None where the text comes as features.
        seed: Of the weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is impossible; the message names it.
    """

    def __init__(
        self,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.1,
        intra_attention: Variant = "A",
        floor: float = 0.1,
        first_tier: bool = True,
        second_tier: bool = True,
        filling: Filling = "shared",
        scorer: bool = True,
        filled_weight: float = 1.0,
        fusion: Fusion = "attention",
        stages: Literal["joint", "two"] = "joint",
        loss_weights: LossWeights | None = None,
        optimization: Optimization | None = None,
        text_encoder: TextEncoderSettings | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(width, optimization, text_encoder, seed)
        if depth < 1:
            raise ValueError(f"depth: must be at least 1, but is {depth}")
        if stages not in ("joint", "two"):
            raise ValueError(f"stages: must be joint or two, but is {stages!r}")
        self.loss_weights = (
            LossWeights(**loss_weights) if isinstance(loss_weights, dict) else loss_weights or LossWeights()
        )
        self.heads, self.depth, self.dropout, self.floor = heads, depth, dropout, floor
        self.intra_attention: Variant = intra_attention
        self.first_tier, self.second_tier = first_tier, second_tier
        self.filling: Filling = filling
        self.scorer, self.filled_weight = scorer, filled_weight
        self.fusion: Fusion = fusion
        self.stages = stages
        self.save_hyperparameters()
        self.keep_plain_settings()

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        self.stems = self.make_stems(facts, marker=self.intra_attention != "none")
        if self.first_tier:
            self.encoders = nn.ModuleDict(
                {
                    name: IADR(self.width, self.heads, self.depth, self.intra_attention, self.floor, self.dropout)
                    for name in MODALITIES
                }
            )
        if self.second_tier:
            self.sfp = SFP(self.width, self.heads, len(MODALITIES), self.filling)
            self.cas = CAS(self.width, self.outputs, len(MODALITIES), self.filled_weight, uniform=not self.scorer)
            self.inter_attn = InterAttn(self.width, self.heads, len(MODALITIES), self.dropout, self.fusion)
        self.head = mlp(self.width * (2 if self.second_tier else 1), self.width, self.outputs)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict; `weights` are the scorer's."""
        fused = self.fuse(self.encode(batch), batch)
        return Prediction(fused.value, fused.weights)

    def floors(self) -> dict[str, list[float]]:
        """Learned floors of Intra-Attn by modality."""
        if not self.first_tier or self.intra_attention not in ("A", "B", "C"):
            return {}
        return {name: cast(IADR, encoder).floors() for name, encoder in self.encoders.items()}

    def encode(self, batch: MultimodalBatch) -> list[Sequence]:
        """First tier: the encoded positions of each modality."""
        sequences = []
        for name in MODALITIES:
            modality = batch.modalities[name]
            hidden = self.stems[name](self.features(batch, name), modality.available)
            if self.first_tier:
                hidden, _ = cast(IADR, self.encoders[name]).sequence(hidden, modality.available, modality.valid)
            sequences.append(Sequence(hidden, modality.available.to(hidden.dtype), modality.content))
        return sequences

    def fuse(self, sequences: list[Sequence], batch: MultimodalBatch, fills: bool = True) -> Fused:
        """Second tier: from encoded positions to a prediction.

        Args:
            sequences: Of the first tier.
            batch: They were made of.
            fills: False leaves missing positions as the first tier made them.
        """
        guesses = self.sfp(sequences) if self.second_tier else [Guess(sequence.hidden) for sequence in sequences]
        if not fills:
            # not used, but in the graph: DDP waits for the gradient of every parameter
            guesses = [
                Guess(own.hidden + 0 * guess.positions, guess.shared)
                for own, guess in zip(sequences, guesses, strict=True)
            ]
        vectors = torch.stack(
            [
                self.pool(place, filled(sequence, guess.positions), sequence, batch.modalities[name])
                for place, (name, sequence, guess) in enumerate(zip(MODALITIES, sequences, guesses, strict=True))
            ],
            1,
        )
        present = batch.present
        if not self.second_tier:
            here = present[..., None].to(vectors.dtype)
            weights = here / here.sum(1, keepdim=True).clamp(min=1)
            value = self.labelled(self.head((vectors * weights).sum(1)))
            return Fused(value, weights.squeeze(-1), vectors[..., :0], vectors, guesses, vectors[..., 0] * 0)
        results, weights, expected = self.cas(vectors, batch.observed.to(vectors.dtype), present)
        value = (weights[..., None] * results).sum(1) + self.head(self.inter_attn(vectors, weights))
        return Fused(self.labelled(value), weights, self.labelled(results), vectors, guesses, expected)

    def pool(self, place: int, hidden: Tensor, sequence: Sequence, modality: Modality) -> Tensor:
        """Make one vector of a modality's positions [B, width]."""
        available = sequence.available
        if self.first_tier:
            return cast(IADR, self.encoders[MODALITIES[place]]).pooled(hidden, available, modality.valid)
        share = (available * modality.content)[..., None]
        return (hidden * share).sum(1) / share.sum(1).clamp(min=1e-6)

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the weighted terms: task, unimodal, scorer, complete, agreement, filling and alignment."""
        label, complete, weights = self.labels(batch), batch.complete, self.loss_weights
        first_stage = self.stages == "two" and self._progress() < _STAGE
        if first_stage and complete is not None:
            batch = with_absent_restored(batch, complete)
        sequences = self.encode(batch)
        fused = self.fuse(sequences, batch, fills=not first_stage)
        terms = self._judged(fused, label, batch)
        judges = weights.complete > 0 or weights.agreement > 0
        learns = self.second_tier and self.sfp.learns
        if complete is not None and (judges or learns):
            with torch.set_grad_enabled(weights.complete > 0 or weights.alignment > 0):
                target = self.encode(complete)
            if judges:
                whole = self.fuse(target, complete)
                terms["complete"] = (
                    weights.complete * torch.stack(list(self._judged(whole, label, complete).values())).sum()
                )
                terms["agreement"] = weights.agreement * self.disagreement(fused.value, whole.value)
            if learns:
                terms["filling"] = weights.filling * filling_loss(fused.guesses, sequences, target)
                terms["alignment"] = weights.alignment * self.sfp.alignment(fused.guesses, target)
        if first_stage and self.second_tier:
            # the first tier alone, judged by the modalities' own results; the others stay in the graph for DDP
            own = self.task_loss(fused.results.mean(1), label).mean()
            terms = {name: term if name == "unimodal" else term * 0 for name, term in terms.items()}
            terms["task"] = terms["task"] + own
        return terms

    def _judged(self, fused: Fused, label: Tensor, batch: MultimodalBatch) -> dict[str, Tensor]:
        """What the labels say of a view: task and, with a second tier, unimodal and scorer."""
        terms = {"task": self.task_loss(fused.value, label).mean()}
        if self.second_tier:
            errors = self.task_loss(fused.results, label[:, None])
            counted = 0.5 + 0.5 * batch.present.to(errors.dtype)
            terms["unimodal"] = self.loss_weights.unimodal * (errors * counted).mean()
            terms["scorer"] = self.loss_weights.scorer * self.cas.loss(fused.expected, errors)
        return terms

    def _progress(self) -> float:
        trainer = self._trainer
        return 0.0 if trainer is None else trainer.global_step / max(1.0, float(trainer.estimated_stepping_batches))

    def rate_factor(self, name: str, progress: float) -> float:
        """The first tier learns slowly in the second of two stages."""
        slow = self.stages == "two" and progress >= _STAGE and name in _FIRST_TIER
        return _SLOW if slow else 1.0


def with_absent_restored(batch: MultimodalBatch, complete: MultimodalBatch) -> MultimodalBatch:
    """Give modalities that are gone as a whole back to the samples.

    Args:
        batch: With missing parts.
        complete: The same samples before.

    Returns:
        The batch in which only parts are missing.
    """
    modalities = {}
    for name, part in batch.modalities.items():
        whole = complete.modalities[name]
        gone = ~part.present
        shape = (-1,) + (1,) * (part.values.dim() - 1)
        modalities[name] = Modality(
            torch.where(gone.view(shape), whole.values, part.values),
            part.valid,
            torch.where(gone[:, None], whole.available, part.available),
            part.special,
        )
    return batch.with_modalities(modalities)
