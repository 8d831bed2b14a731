"""A resumed fit equals one that was not interrupted, wherever and however it was interrupted."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import Dataset

from saccade.callbacks.checkpoints.atomic_io import AtomicCheckpointIO
from saccade.callbacks.checkpoints.run_checkpoints import LastCheckpoint
from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.modules.exact_resume import ExactResume

pytestmark = pytest.mark.filterwarnings("ignore")
WHERE = ("fetch", "step", "batch_end", "validation_start", "validation", "validation_end", "epoch_start", "epoch_end")
SETTINGS = {
    "epochs": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "steps": {"max_steps": 20, "max_epochs": -1, "val_check_interval": 4},
    "validation across epochs": {
        "max_epochs": 3, "accumulate_grad_batches": 3, "val_check_interval": 5, "check_val_every_n_epoch": None,
    },
    "no validation": {"max_steps": 17, "limit_val_batches": 0, "accumulate_grad_batches": 1},
}  # fmt: skip


class BoomError(Exception):
    """An error of somebody else."""


class Interruption:
    """Interrupts at the n-th visit of a place."""

    def __init__(self, where: str = "", visit: int = 0, how: str = "error") -> None:
        self.where, self.left, self.how, self.happened = where, visit, how, False

    def __call__(self, where: str) -> None:
        if where != self.where or self.happened:
            return
        self.left -= 1
        if self.left == 0:
            self.happened = True
            if self.how == "error":
                raise BoomError
            os.kill(os.getpid(), getattr(signal, self.how))


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, visit: Callable[[str], None]) -> None:
        self.rows, self.visit = torch.randn(24, 4, generator=torch.Generator().manual_seed(0)), visit

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        self.visit("fetch")
        return {"x": self.rows[indices]}


class Data(LightningDataModule):
    def __init__(self, visit: Callable[[str], None], num_workers: int) -> None:
        super().__init__()
        self.visit, self.num_workers = visit, num_workers

    def train_dataloader(self):
        return BatchLoader(Rows(self.visit), BatchSampler(22, 2, 0, 1, True, 3), self.num_workers, False)

    def val_dataloader(self):
        return BatchLoader(Rows(lambda where: None), BatchSampler(6, 2, 0, 1, False, 3), 0, False)


class Toy(LightningModule):
    """Its loss depends on dropout and on the random numbers of Python and NumPy, and its rate on the step."""

    def __init__(self, visit: Callable[[str], None]) -> None:
        super().__init__()
        self.visit, self.validated = visit, set()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        found = self.layers(batch["x"])
        self.visit("step")
        return ((found - batch["x"].sum(1, keepdim=True) - random.random() - np.random.rand()) ** 2).mean()  # noqa: NPY002

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.visit("validation")
            self.validated.add((self.global_step, batch_idx))

    def on_train_epoch_start(self):
        self.visit("epoch_start")

    def on_train_batch_end(self, *_):
        self.visit("batch_end")

    def on_fit_start(self):
        assert self.trainer.estimated_stepping_batches > 0  # makes the loader before its state is read

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self):
        return [ExactResume()]


class Hooks(Callback):
    def __init__(self, visit: Callable[[str], None]) -> None:
        self.visit = visit

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.visit("validation_start")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.visit("validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.visit("epoch_end")


def fit(folder: Path, settings: dict, visit: Interruption, checkpoint: Path | None = None, num_workers: int = 0) -> Toy:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    module = Toy(visit)
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[AtomicCheckpointIO()],
        callbacks=[Hooks(visit), LastCheckpoint(folder / "last.ckpt")], **settings,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=Data(visit, num_workers), ckpt_path=checkpoint)
    except (BoomError, SystemExit):
        assert visit.happened
    module.steps = trainer.global_step
    return module


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_is_uninterrupted(name, tmp_path):
    settings = SETTINGS[name]
    whole = fit(tmp_path, settings, Interruption())
    draw, count = random.Random(name), 0
    for number, where in enumerate(WHERE):
        how = ("error", "SIGTERM", "SIGINT")[(number + len(name)) % 3]
        # an interruption in the last validation has trained everything, so that nothing is left to continue
        visit = draw.randrange(3, 16) if where in ("fetch", "step", "batch_end") else draw.randrange(1, 3)
        visit = 2 if where == "epoch_start" else visit  # before the first epoch, there is nothing to save
        interruption, folder = Interruption(where, visit, how), tmp_path / where
        cut = fit(folder, settings, interruption)
        if not interruption.happened:
            continue
        assert cut.steps < whole.steps, (where, how, visit)
        resumed = fit(folder / "second", settings, Interruption(), folder / "last.ckpt", num_workers=2 * (number == 0))
        case = (name, where, how, visit, cut.steps)
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), case
        assert resumed.steps == whole.steps, case
        assert cut.validated | resumed.validated == whole.validated, case
        count += 1
    assert count >= 4


def test_an_interrupted_update_is_not_saved(tmp_path):
    """Weights of which some have changed and some have not belong to no step."""

    class Halfway(Toy):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            step, calls = optimizer.step, []

            def failing(closure):
                calls.append(None)
                if len(calls) < 4:
                    return step(closure)
                closure()
                with torch.no_grad():
                    next(self.parameters()).add_(1)
                raise BoomError

            optimizer.step = failing
            return optimizer

    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, val_check_interval=2, callbacks=[LastCheckpoint(tmp_path / "last.ckpt")],
    )  # fmt: skip
    with pytest.raises(BoomError):
        trainer.fit(Halfway(Interruption()), datamodule=Data(Interruption(), 0))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2, "the state of the validation before"


def test_nothing_trained_is_nothing_saved(tmp_path):
    fit(tmp_path, SETTINGS["epochs"], Interruption("step", 1))
    assert not (tmp_path / "last.ckpt").exists()


def test_more_steps_continue_in_the_same_epoch(tmp_path):
    """A fit that `max_steps` ended in the middle of an epoch goes on there, and reads no sequence twice."""
    whole = fit(tmp_path, {"max_steps": 20, "limit_val_batches": 0}, Interruption())
    fit(tmp_path / "first", {"max_steps": 7, "limit_val_batches": 0}, Interruption())
    read: list[list[int]] = []

    class Noting(Interruption):
        def __call__(self, where: str) -> None:
            read.append([]) if where == "fetch" else None

    resumed = fit(
        tmp_path / "second", {"max_steps": 20, "limit_val_batches": 0}, Noting(), tmp_path / "first" / "last.ckpt"
    )
    assert len(read) == 13
    assert resumed.steps == whole.steps == 20
