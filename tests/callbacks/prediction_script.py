"""A model and data for test_prediction_table.py; run by it as a script, the same in two processes."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from saccade.callbacks.prediction_table import PredictionTable

COUNT = 7
KEYS = 2**62 + 10 * torch.arange(COUNT)


class Data(LightningDataModule):
    """Seven samples.

    Args:
        padded: Deal them out by torch's own sampler, which repeats some so that all ranks have equally many.
        loaders: How many times to read them.
    """

    def __init__(self, padded: bool = False, loaders: int = 1) -> None:
        super().__init__()
        self.padded, self.loaders = padded, loaders

    def predict_dataloader(self):
        rows = TensorDataset(KEYS, torch.arange(COUNT) / 10)
        sampler = DistributedSampler(rows, shuffle=False) if self.padded else None
        loaders = [DataLoader(rows, batch_size=2, sampler=sampler) for _ in range(self.loaders)]
        return loaders if self.loaders > 1 else loaders[0]

    def sample_ids(self, keys: Tensor) -> list[str]:
        return [f'clip, "{(key - 2**62) // 10}"' for key in keys.tolist()]


class Model(LightningModule):
    """Predicts its input, or whatever it is told to.

    Args:
        output: None, or what `predict_step` returns for the second batch.
    """

    def __init__(self, output=None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.output = output

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        if self.output is not None and batch_idx == 1:
            return self.output
        keys, values = batch
        return {
            "value": values * self.weight,
            "word": [f"w{int(10 * value + 0.5)}" for value in values],
            "half": values.bfloat16(),
            "large": values > 0.25,
            "key": keys,
        }


def predict(folder: Path, model=None, data=None, **settings) -> str | None:
    """The text of the table of a run."""
    callback = PredictionTable()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
        **{"devices": 1, **settings},
    )
    trainer.predict(model or Model(), datamodule=data or Data(), return_predictions=False)
    trainer.strategy.barrier()
    path = Path(folder, "predictions.csv")
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    place = Path(sys.argv[1])
    predict(place / "dealt", devices=2, strategy="ddp")
    predict(place / "padded", data=Data(padded=True), devices=2, strategy="ddp", use_distributed_sampler=False)
    predict(place / "twice", data=Data(loaders=2), devices=2, strategy="ddp")
    predict(place / "one", devices=2, strategy="ddp", limit_predict_batches=1)
    Path(place, f"done{os.environ['LOCAL_RANK']}").touch()
