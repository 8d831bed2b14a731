"""A selection on two GPUs through the `saccade` command, and what ZeRO-2 must forget between trials."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.processes import TIME_LIMIT

pytestmark = [
    pytest.mark.multi_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
STRATEGIES = [
    "ddp",
    pytest.param("deepspeed_stage_2", marks=[pytest.mark.deepspeed, needs_deepspeed]),
]
SMALL = """
data:
  class_path: saccade.datamodules.ChunkPool
  init_args:
    sources: [asyncio, email, unittest]
    target: logging
    chunk_size: 16
    passes: 2
    batch_size: 4
    hard_negatives: 3
    max_pairs_per_package: 64
trainer:
  max_epochs: -1
  limit_val_batches: 0
  callbacks:
  - class_path: saccade.callbacks.TraitSelection
    init_args: {budget: 4, candidates: 20}
"""
MODELS = {
    "reranker": "model: {class_path: saccade.modules.Reranker, init_args: {width: 16, learning_rate: 0.03}}",
    "retriever": "model: {class_path: saccade.modules.Retriever, init_args: {rows: 2048, width: 32}}",
}


def saccade(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "saccade.cli.main", *arguments, "--trainer.devices=2"]
    command += ["--trainer.accelerator=gpu", "--trainer.enable_progress_bar=false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def newest(folder: Path, name: str, file: str) -> Path:
    return max((folder / "runs" / name).rglob(file), key=lambda path: path.stat().st_mtime)


def journal(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in newest(folder, name, "trials.jsonl").read_text().splitlines()]


def settings(folder: Path, model: str, *more: str) -> list[str]:
    (folder / "small.yaml").write_text(f"seed_everything: 1\n{MODELS[model]}\n{SMALL}")
    return ["--config", "small.yaml", *more]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_search_and_its_resumption(strategy, model, tmp_path):
    common = settings(tmp_path, model, "--config", f"strategy/{strategy}.yaml")
    saccade(tmp_path, "fit", *common, "--name", "whole")
    whole = journal(tmp_path, "whole")
    assert [line["kind"] for line in whole].count("trial") == 4
    found = json.loads(newest(tmp_path, "whole", "trait.json").read_text())
    assert found["evaluated_pairs"] == 16 * (3 + sum(not line["reused"] for line in whole if line["kind"] == "trial"))
    assert found["dev"]["best"] >= found["dev"]["base"]
    assert len(list((tmp_path / "runs" / "whole").rglob("trait.json"))) == 1
    # the checkpoint's weights and moments are those of the last trial, which need not be the next one's parent
    saccade(tmp_path, "fit", *common, "--name", "part", "--trainer.max_epochs=4")
    begun = journal(tmp_path, "part")
    assert len(begun) < len(whole)
    saccade(tmp_path, "fit", *common, "--name", "part", "--ckpt_path", "last")
    gone_on = journal(tmp_path, "part")
    assert gone_on[: len(begun)] == begun
    assert [(line["kind"], line.get("source"), line.get("chunk")) for line in gone_on] == [
        (line["kind"], line.get("source"), line.get("chunk")) for line in whole
    ]
    for one, two in zip(gone_on, whole, strict=True):
        # a GPU adds in no fixed order
        assert one.get("score", 0.0) == pytest.approx(two.get("score", 0.0), abs=1e-3)


SCRIPT = """
import sys
import torch
from lightning.pytorch import LightningModule, Trainer
from saccade.callbacks.trait.weights import clear_state, place_weights


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def training_step(self, batch, index):
        return self.layer(batch.to(self.layer.weight.dtype)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.1)

    def train_dataloader(self):
        draw = torch.Generator().manual_seed(self.current_epoch % 2)
        return torch.utils.data.DataLoader(torch.randn(16, 8, generator=draw), batch_size=4)

    def on_train_epoch_start(self):
        # epochs 0 and 2 see the same data; between them lies another trial
        if self.current_epoch == 0:
            self.parent = {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}
            clear_state(self.trainer.optimizers)
        else:
            place_weights(self, self.parent, self.trainer.optimizers)

    def on_train_epoch_end(self):
        weights = self.layer.weight.detach().float().cpu().clone()
        if self.current_epoch == 0:
            self.child = weights
        elif self.current_epoch == 1 and torch.allclose(weights, self.child, atol=1e-3):
            raise RuntimeError("other data gave the same child")
        elif self.current_epoch == 2 and not torch.allclose(weights, self.child, atol=1e-5):
            raise RuntimeError(f"a trial was inherited: {(weights - self.child).abs().max()}")


if __name__ == "__main__":
    trainer = Trainer(
        strategy=sys.argv[1], precision=sys.argv[2], max_epochs=3, devices=2, accelerator="gpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )
    torch.manual_seed(0)
    trainer.fit(Tiny())
"""


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_trial_gives_the_same_child_after_another(strategy, precision, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", strategy, precision]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
