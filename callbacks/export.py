"""ModelExport: what was trained, as a folder that other programs load."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from saccade.callbacks.run_folder import run_folder


def unusable_loss(trainer: Trainer) -> float | None:
    """Say with what loss a training diverged.

    Args:
        trainer: When the fit has ended.

    Returns:
        The last logged `train_loss` where it is no finite number; None where it is one, or where none was logged.
    """
    loss = trainer.callback_metrics.get("train_loss")
    return None if loss is None or bool(loss.isfinite()) else float(loss)


class ModelExport(Callback):
    """Write the trained model into the run folder when a fit ends, by the module's own `save_pretrained`.

    The weights are those of the last step. A module without `save_pretrained` is left alone, and so is a
    `fast_dev_run`; a training whose logged `train_loss` ended as no number has nothing to export. All ranks take part:
    under ZeRO-3 the weights are gathered.

    Args:
        folder: Name of the exported folder inside the run folder.
    """

    def __init__(self, folder: str = "model") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export, while the ranks can still talk to each other."""
        save: Any = getattr(pl_module, "save_pretrained", None)
        if save is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if (loss := unusable_loss(trainer)) is not None:
            rank_zero_info(f"saccade: the model is not exported, its last train_loss is {loss}")
            return
        target: Path = run_folder(trainer) / self.folder
        save(target)
        rank_zero_info(f"saccade: the model is exported to {target}")
