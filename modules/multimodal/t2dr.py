"""T2DR: a model with two tiers, for data missing within a modality and for missing modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from saccade.common.checks import check_count, check_number
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, MultimodalModule, Optimization, Prediction
from saccade.modules.multimodal.layers import CAS, IADR, SFP, InterAttn
from saccade.modules.multimodal.layers.inter_attn import Fusion
from saccade.modules.multimodal.layers.intra_attn import Variant
from saccade.modules.multimodal.layers.perceptron import mlp
from saccade.modules.multimodal.layers.sfp import EncodedModality, Filling, Guess, filled, filling_loss
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings

_FIRST_STAGE = 0.3  # fraction of the run that the first of two stages takes
_SECOND_STAGE_MULTIPLIER = 0.1  # learning-rate multiplier of the first tier in the second stage
_FIRST_TIER = ("text_encoder", "stems", "encoders")


@dataclass
class LossWeights:
    """Weights of the terms of T2DR's training loss; the weight of the task loss is 1. Ours.

    Args:
        unimodal: Loss of each modality's own prediction; a filled modality counts half.
        scorer: Loss of the errors that the scorer expects, against the errors of the modalities' own predictions.
        filling: Distance of filled positions from those of the complete sample.
        alignment: Contrastive loss of the predicted shared features of a clip against those of the batch.
        complete: The task, unimodal and scorer terms again, on the complete sample.
        agreement: Distance of the prediction from that for the complete sample, a less noisy target than the label.

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
            check_number(f"loss_weights.{name}", value)
            if not value >= 0:
                raise ValueError(
                    f"loss_weights.{name} must be at least 0, got {value}: choose 0 to leave the term out."
                )


@dataclass
class Fused:
    """Outputs of the second tier for a batch.

    Args:
        value: Predictions [B], or logits [B, C].
        weights: Weights of the modalities, summing to 1 [B, 3].
        results: Predictions from each modality alone [B, 3], or logits [B, 3, C].
        vectors: Vectors of the modalities after filling [B, 3, width].
        guesses: SFP's prediction of each modality.
        expected: Logarithms of the errors that CAS expects of `results` [B, 3].
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
    and their order are those of the paper, all formulas are ours. First tier: `IADR` with `IntraAttn` encodes each
    modality as one vector and is robust to missing parts. Second tier: `SFP` fills missing modalities from the features
    that they share with the available ones, `CAS` computes a prediction and a weight for each modality, and `InterAttn`
    lets the modalities attend to each other according to these weights. The output is the weighted mean of the
    modalities' own predictions plus a correction from the fused vector.

    Args:
        width: Features of a position and of a modality's vector.
        heads: Attention heads in both tiers; must divide `width`.
        depth: Transformer blocks of the first tier.
        dropout: Dropout in both tiers.
        intra_attention: How attention treats missing positions (`IntraAttn`); `none` also leaves out the marker of
            missing positions.
        floor: Initial value of the learned floors of Intra-Attn.
        first_tier: False replaces `IADR` by the mean of the available positions, for comparison.
        second_tier: False replaces `SFP`, `CAS` and `InterAttn` by the mean of the vectors, for comparison.
        filling: How missing positions and modalities are filled (`SFP`).
        scorer: False gives all modalities the same weight, for comparison.
        filled_weight: Multiplier of the weight of a filled modality (`CAS`), 0 to 1.
        fusion: `attention` (`InterAttn`) or `concatenation`, for comparison.
        stages: `joint` trains everything at once. `two` trains the first tier alone for the first 30 % of the run, with
            no modality missing, and trains it with a tenth of the learning rate afterwards.
        loss_weights: Weights of the loss terms; None takes the defaults.
        optimization: Optimizer and schedule; None takes the defaults.
        text_encoder: A Hugging Face encoder for token ids; None if the text is given as features.
        seed: Seed of the weights. None takes `seed_everything`, or 0.

    Raises:
        ValueError: A setting is out of range; the message names it.
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
        check_count("depth", depth)
        if stages not in ("joint", "two"):
            raise ValueError(f"stages must be joint or two, got {stages!r}: choose one of them.")
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
        """Predict the labels of a batch; `weights` are those of the scorer."""
        fused = self.fuse(self.encode(batch), batch)
        return Prediction(fused.value, fused.weights)

    def floors(self) -> dict[str, list[float]]:
        """Return the learned floors of Intra-Attn by modality."""
        if not self.first_tier or self.intra_attention not in ("A", "B", "C"):
            return {}
        return {name: cast(IADR, encoder).floors() for name, encoder in self.encoders.items()}

    def encode(self, batch: MultimodalBatch) -> list[EncodedModality]:
        """Run the first tier: encode the positions of each modality."""
        encoded = []
        for name in MODALITIES:
            modality = batch.modalities[name]
            hidden = self.stems[name](self.features(batch, name), modality.available)
            if self.first_tier:
                hidden, _ = cast(IADR, self.encoders[name]).sequence(hidden, modality.available, modality.valid)
            encoded.append(EncodedModality(hidden, modality.available.to(hidden.dtype), modality.content))
        return encoded

    def fuse(self, encoded: list[EncodedModality], batch: MultimodalBatch, fills: bool = True) -> Fused:
        """Run the second tier: from encoded positions to a prediction.

        Args:
            encoded: Output of the first tier for the batch.
            batch: The batch.
            fills: False leaves missing positions as the first tier encoded them.
        """
        guesses = self.sfp(encoded) if self.second_tier else [Guess(own.hidden) for own in encoded]
        if not fills:
            # the guesses stay in the graph, because DDP waits for the gradient of every parameter
            guesses = [
                Guess(own.hidden + 0 * guess.positions, guess.shared)
                for own, guess in zip(encoded, guesses, strict=True)
            ]
        vectors = torch.stack(
            [
                self.pool(place, filled(own, guess.positions), own, batch.modalities[name])
                for place, (name, own, guess) in enumerate(zip(MODALITIES, encoded, guesses, strict=True))
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

    def pool(self, place: int, hidden: Tensor, encoded: EncodedModality, modality: Modality) -> Tensor:
        """Pool the positions of a modality to one vector [B, width].

        Args:
            place: Number of the modality.
            hidden: Its positions after filling [B, T, width].
            encoded: The modality after the first tier.
            modality: The modality in the batch.
        """
        available = encoded.available
        if self.first_tier:
            return cast(IADR, self.encoders[MODALITIES[place]]).pooled(hidden, available, modality.valid)
        share = (available * modality.content)[..., None]
        return (hidden * share).sum(1) / share.sum(1).clamp(min=1e-6)

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the weighted terms: task, unimodal, scorer, complete, agreement, filling and alignment."""
        label, complete, weights = self.labels(batch), batch.complete, self.loss_weights
        first_stage = self.stages == "two" and self._progress() < _FIRST_STAGE
        if first_stage and complete is not None:
            batch = with_absent_restored(batch, complete)
        encoded = self.encode(batch)
        fused = self.fuse(encoded, batch, fills=not first_stage)
        terms = self._label_terms(fused, label, batch)
        predicts_complete = weights.complete > 0 or weights.agreement > 0
        learns = self.second_tier and self.sfp.learns
        if complete is not None and (predicts_complete or learns):
            with torch.set_grad_enabled(weights.complete > 0 or weights.alignment > 0):
                target = self.encode(complete)
            if predicts_complete:
                whole = self.fuse(target, complete)
                terms["complete"] = (
                    weights.complete * torch.stack(list(self._label_terms(whole, label, complete).values())).sum()
                )
                terms["agreement"] = weights.agreement * self.disagreement(fused.value, whole.value)
            if learns:
                terms["filling"] = weights.filling * filling_loss(fused.guesses, encoded, target)
                terms["alignment"] = weights.alignment * self.sfp.alignment(fused.guesses, target)
        if first_stage and self.second_tier:
            # only the first tier is trained, on the modalities' own predictions; the other terms stay in the graph
            # with weight 0, because DDP waits for the gradient of every parameter
            own = self.task_loss(fused.results.mean(1), label).mean()
            terms = {name: term if name == "unimodal" else term * 0 for name, term in terms.items()}
            terms["task"] = terms["task"] + own
        return terms

    def _label_terms(self, fused: Fused, label: Tensor, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the loss terms that need labels: task and, with a second tier, unimodal and scorer."""
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

    def learning_rate_multiplier(self, part: str, progress: float) -> float:
        """Return a tenth for the first tier in the second of two stages, else 1.

        Args:
            part: First component of the parameter names.
            progress: Fraction of the run that is done, 0 to 1.
        """
        second_stage = self.stages == "two" and progress >= _FIRST_STAGE
        return _SECOND_STAGE_MULTIPLIER if second_stage and part in _FIRST_TIER else 1.0


def with_absent_restored(batch: MultimodalBatch, complete: MultimodalBatch) -> MultimodalBatch:
    """Restore modalities that are missing as a whole.

    Args:
        batch: Samples with missing parts and modalities.
        complete: The same samples before anything was removed.

    Returns:
        The batch, in which only parts of modalities are missing.
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
