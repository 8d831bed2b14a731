"""Late fusion with zeros for missing modalities."""

from __future__ import annotations

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, Prediction
from saccade.modules.multimodal.baselines.baseline import Baseline
from saccade.modules.multimodal.layers.perceptron import mlp


class LateFusion(Baseline):
    """Encodes each modality alone, replaces missing ones by zeros, and feeds the concatenation to a small network.

    The simplest baseline, trained with the same missing data as the others.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.head = mlp(len(MODALITIES) * self.width, 2 * self.width, self.outputs)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict the labels of a batch."""
        vectors = self.vectors(batch)
        here = vectors * batch.present[..., None].to(vectors.dtype)
        return Prediction(self.labelled(self.head(here.flatten(1))))
