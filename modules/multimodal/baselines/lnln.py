"""A completeness score mixes the text with a stand-in for it."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, Prediction
from saccade.modules.multimodal.baselines.baseline import Baseline
from saccade.modules.multimodal.layers.perceptron import mlp

_COMPLETENESS, _PROXY = 0.9, 0.1


class LNLNLike(Baseline):
    """The idea of LNLN (Zhang et al., NeurIPS 2024): estimate how complete the text is, and mix in a stand-in for it.

    A score w in 0 to 1, read from the text's vector and supervised by the observed share, mixes the text with a proxy
    that audio and vision predict: w text + (1 - w) proxy. The proxy learns the complete text's vector. LNLN's
    adversarial game and its hyper-modality layers are not rebuilt here. The model is not told what is missing.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.completeness = mlp(self.width, self.width, 1)
        self.proxy = mlp(2 * self.width, 2 * self.width, self.width)
        self.head = mlp(len(MODALITIES) * self.width, 2 * self.width, self.outputs)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict."""
        vectors = self.vectors(batch)
        return Prediction(self._fused(vectors)[0])

    def _fused(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score = self.completeness(vectors[:, 0]).sigmoid()
        proxy = self.proxy(vectors[:, 1:].flatten(1))
        mixed = score * vectors[:, 0] + (1 - score) * proxy
        value = self.head(torch.cat([mixed, vectors[:, 1:].flatten(1)], 1))
        return self.labelled(value), score.squeeze(1), proxy

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """The task's loss, that of the score, and that of the proxy."""
        value, score, proxy = self._fused(self.vectors(batch))
        terms = {
            "task": self.task_loss(value, self.labels(batch)).mean(),
            "completeness": _COMPLETENESS * ((score - batch.observed[:, 0].to(score.dtype)) ** 2).mean(),
        }
        if batch.complete is not None:
            with torch.no_grad():
                target = self.vectors(batch.complete)[:, 0]
            terms["proxy"] = _PROXY * ((proxy - target) ** 2).mean()
        return terms
