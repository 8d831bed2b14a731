"""Late fusion with zeros in the place of absent modalities."""

from __future__ import annotations

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.modules.multimodal.base import DataFacts, Prediction
from saccade.modules.multimodal.baselines.baseline import Baseline
from saccade.modules.multimodal.layers.perceptron import mlp


class LateFusion(Baseline):
    """Each modality is encoded alone; an absent one is a vector of zeros; a small network reads them side by side.

    The simplest thing that works, trained with the same missing data as the others.
    """

    def construct(self, facts: DataFacts) -> None:
        """Create the layers."""
        super().construct(facts)
        self.head = mlp(len(MODALITIES) * self.width, 2 * self.width, self.outputs)

    def forward(self, batch: MultimodalBatch) -> Prediction:
        """Predict."""
        vectors = self.vectors(batch)
        here = vectors * batch.present[..., None].to(vectors.dtype)
        return Prediction(self.labelled(self.head(here.flatten(1))))
