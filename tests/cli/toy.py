"""A model of four numbers and data without files, so that a whole fit takes milliseconds."""

import os
import signal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset, TensorDataset


class ToyModel(LightningModule):
    """Linear regression.

    Args:
        width: Inputs; at least 1.
        learning_rate: Of SGD.
        betas: A tuple, which a checkpoint keeps as a list.
        options: A nested setting.
        fail: Where to fail: "" nowhere, "ours" or "theirs" with a ValueError in the first training step.
    """

    def __init__(
        self,
        width: int = 4,
        learning_rate: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        options: dict[str, int] | None = None,
        fail: str = "",
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1,\ngot {width}: choose more.")
        self.save_hyperparameters()
        self.rate, self.fail = learning_rate, fail
        self.layer = torch.nn.Linear(width, 1)

    def _loss(self, batch):
        return ((self.layer(batch[0]) - batch[0].sum(1, keepdim=True)) ** 2).mean()

    def training_step(self, batch, batch_idx):
        if self.fail == "interrupt" and self.global_step == 2:
            raise KeyboardInterrupt
        if self.fail == "terminated" and self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.fail == "later" and self.global_step == 6:
            raise ZeroDivisionError("a bug of somebody else")
        if self.fail == "ours":
            from saccade.common.files import write_json

            write_json("x.json", object())
        if self.fail == "theirs":
            int("a bug of somebody else")
        loss = self._loss(batch)
        if self.fail == "diverges":
            loss = loss * torch.nan
            self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self._loss(batch))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return {"value": self.layer(batch[0])[:, 0]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)

    def save_pretrained(self, folder):
        folder.mkdir()
        torch.save(self.layer.state_dict(), folder / "layer.pt")


class ToyModelWithoutValidation(ToyModel):
    """The same, without val_loss and without export."""

    validation_step = None
    save_pretrained = None


class ToyData(LightningDataModule):
    """Sixteen rows.

    Args:
        width: Numbers per row.
    """

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        rows = torch.linspace(-1, 1, 16 * width).reshape(16, width)
        self.rows = TensorDataset(rows)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class BrokenRows(Dataset):
    """Sixteen rows, of which one cannot be read."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == 9:
            raise ValueError("clips.jsonl line 9 names c.mp4, which is cut off.")
        return [torch.full((4,), index / 16)]


class BrokenData(ToyData):
    """Rows that a loader process cannot all read.

    Args:
        num_workers: Loader processes.
    """

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        return DataLoader(BrokenRows(), batch_size=4, num_workers=self.num_workers)


class Witness(Callback):
    """Writes the names of all callbacks of the run into a file.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_fit_start(self, trainer, pl_module):
        with open(self.path, "a") as file:
            file.write("\n".join(type(callback).__name__ for callback in trainer.callbacks))
