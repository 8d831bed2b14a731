"""ModelExport: save the trained model as a folder that other programs can load."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from saccade.callbacks.run_folder import run_folder


def unusable_loss(trainer: Trainer) -> float | None:
    """Return the last training loss if the training diverged.

    Args:
        trainer: The trainer, after its fit.

    Returns:
        The last logged `train_loss` if it is infinite or NaN; None if it is finite or was not logged.
    """
    loss = trainer.callback_metrics.get("train_loss")
    return None if loss is None or bool(loss.isfinite()) else float(loss)


class ModelExport(Callback):
    """Write the trained model into the run folder when a fit ends, with the module's own `save_pretrained`.

    The weights are those of the last step. Nothing is exported if the module has no `save_pretrained`, in a
    `fast_dev_run`, or if the last logged `train_loss` is infinite or NaN. All ranks take part, because under ZeRO-3
    the weights are gathered.

    Args:
        folder: Name of the exported folder inside the run folder.
    """

    def __init__(self, folder: str = "model") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export the model while the process group still exists."""
        save: Any = getattr(pl_module, "save_pretrained", None)
        if save is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (loss := unusable_loss(trainer)) is not None:
            rank_zero_info(f"saccade: the model is not exported because its last train_loss is {loss}")
            return
        target: Path = run_folder(trainer) / self.folder
        save(target)
        rank_zero_info(f"saccade: the model is exported to {target}")
