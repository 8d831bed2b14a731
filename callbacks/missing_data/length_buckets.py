"""Divide a batch of sequences into parts of similar length, to save the time of padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saccade.datamodules.multimodal.batch import Modality, MultimodalBatch

# samples of a part on the CPU. On an accelerator small forwards only wait for kernel launches: there, one part is used
_PART = 64


@dataclass
class Parts:
    """How a batch is divided: which samples go together, and how many positions of each modality they need.

    Args:
        rows: Indices of the samples of each part, long.
        lengths: Number of positions that each part keeps, by modality.
    """

    rows: list[Tensor]
    lengths: list[dict[str, int]]

    @classmethod
    def of(cls, batch: MultimodalBatch) -> Parts:
        """Sort the samples of a batch by length and divide them.

        Args:
            batch: The batch; erasing values later does not change the lengths.
        """
        needed = {name: modality.lengths for name, modality in batch.modalities.items()}
        order = torch.stack(list(needed.values())).sum(0).argsort(stable=True)
        rows = list(order.split(_PART if order.device.type == "cpu" else max(len(order), 1)))
        lengths = [{name: max(1, int(last[part].max())) for name, last in needed.items()} for part in rows]
        return cls(rows, lengths)

    def map(self, function: Callable[[MultimodalBatch], Tensor], batch: MultimodalBatch) -> Tensor:
        """Apply a function to every part.

        Args:
            function: Returns one row for each sample.
            batch: The batch that was divided, or a copy with other values.

        Returns:
            The rows in the order of the batch.
        """
        results = [function(_part(batch, rows, lengths)) for rows, lengths in zip(self.rows, self.lengths, strict=True)]
        return torch.cat(results)[torch.cat(self.rows).argsort()]


def _part(batch: MultimodalBatch, rows: Tensor, lengths: dict[str, int]) -> MultimodalBatch:
    modalities = {
        name: Modality(
            *(
                values[:, : lengths[name]][rows]
                for values in (modality.values, modality.valid, modality.available, modality.special)
            )
        )
        for name, modality in batch.modalities.items()
    }
    label = None if batch.label is None else batch.label[rows]
    return replace(batch, modalities=modalities, label=label, key=batch.key[rows], complete=None)
