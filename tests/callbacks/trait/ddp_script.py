"""Run by test_ddp.py on two ranks: searches; writes what each of them knew at the end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from saccade.callbacks import TraitSelection
from saccade.callbacks.trait import selection as trait_selection
from saccade.modules import Reranker
from tests.callbacks.trait.pool import make_pool

GLOBAL_BATCH = 4


class Separate(Reranker):
    """A reranker whose pairs do not see each other, so that it does not matter which of them share a batch."""

    def loss(self, batch: dict[str, Any]) -> Tensor:
        parts = [{name: column[at : at + 1] for name, column in batch.items()} for at in range(len(batch["query"]))]
        return torch.stack([super(Separate, self).loss(part) for part in parts]).mean()


class Stop(Callback):
    """Leaves every rank in the middle of a trial."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.left -= 1
        if self.left < 0:
            raise InterruptedError("stopped")


def search(folder: Path, data: Path, devices: int, more: tuple[Callback, ...] = ()) -> tuple[Separate, TraitSelection]:
    """One search on one or two processes with the same global batch."""
    seed_everything(0, verbose=False)
    module, callback = Separate(width=4, learning_rate=0.1), TraitSelection(5, candidates=10)
    trainer = Trainer(
        max_epochs=-1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        limit_val_batches=0, enable_checkpointing=False, default_root_dir=folder, callbacks=[callback, *more],
        devices=devices, strategy="ddp" if devices > 1 else "auto",
    )  # fmt: skip
    trainer.fit(module, make_pool(data, batch_size=GLOBAL_BATCH // devices))
    return module, callback


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    written: list[str] = []
    for name in ("write_json", "write_text"):
        original = getattr(trait_selection, name)

        def spy(path: Path, content: Any, original: Any = original) -> None:
            written.append(Path(path).name)
            original(path, content)

        setattr(trait_selection, name, spy)
    results: dict[str, Any] = {}
    for run in ("whole", "stopped"):
        written.clear()
        # each rank has files of its own: what they read is the same
        data = folder / f"data-{run}-{os.environ.get('LOCAL_RANK', '0')}"
        data.mkdir(exist_ok=True)
        if run == "stopped":
            try:
                search(folder / run, data, 2, (Stop(4),))
            except InterruptedError:
                results["interrupted"] = True
        module, callback = search(folder / run, data, 2)
        known = {
            "events": [event.to_dict() for event in callback.events],
            "score": callback.best.score if callback.best else None,
            "weights": {name: value.tolist() for name, value in module.state_dict().items()},
            "written": list(written),
        }
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, known)
        results[run] = gathered
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
