"""A model that mixes the text with a prediction of it, by an estimate of how complete the text is."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, Prediction
from saccade.modules.multimodal.baselines.baseline import Baseline
from saccade.modules.multimodal.layers.perceptron import mlp

_COMPLETENESS, _PROXY = 0.9, 0.1  # weights of the losses of the score and of the proxy


class LNLNLike(Baseline):
    """The idea of LNLN (Zhang et al., NeurIPS 2024): estimate how complete the text is, and mix in a proxy for it.

    A score w between 0 and 1, computed from the vector of the text and trained to equal its observed fraction, mixes
    the text with a proxy that is predicted from audio and vision: w text + (1 - w) proxy. The proxy is trained to equal
    the vector of the complete text. LNLN's adversarial training and its hyper-modality layers are not included. The
    model does not know what is missing.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.completeness = mlp(self.width, self.width, 1)
        self.proxy = mlp(2 * self.width, 2 * self.width, self.width)
        self.head = mlp(len(MODALITIES) * self.width, 2 * self.width, self.outputs)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict the labels of a batch."""
        vectors = self.vectors(batch)
        return Prediction(self._fused(vectors)[0])

    def _fused(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score = self.completeness(vectors[:, 0]).sigmoid()
        proxy = self.proxy(vectors[:, 1:].flatten(1))
        mixed = score * vectors[:, 0] + (1 - score) * proxy
        value = self.head(torch.cat([mixed, vectors[:, 1:].flatten(1)], 1))
        return self.labelled(value), score.squeeze(1), proxy

    def losses(self, batch: MultimodalBatch) -> dict[str, Tensor]:
        """Compute the losses of the task, of the score, and of the proxy."""
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
