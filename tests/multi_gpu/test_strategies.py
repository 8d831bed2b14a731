"""The `saccade` command on two GPUs: fit, resume and validate with decoders, under every shipped strategy."""

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
    pytest.param("deepspeed_stage_3", marks=[pytest.mark.deepspeed, needs_deepspeed]),
]
DECODING = """
trainer:
  limit_val_batches: 1.0  # all of the data: what two ranks see in a few batches is not what one sees
  callbacks:
  - class_path: saccade.callbacks.DecodingEvaluation
    init_args:
      prompt_length: 32
      max_new_tokens: 32
      max_prompts: 11
      decoders:
        prompt_lookup:
          class_path: saccade.inference.PromptLookup
        self_speculative:
          class_path: saccade.inference.SelfSpeculative
          init_args: {skip: {attention: [1], mlp: []}, draft_length: 4, gamma: 0.3}
"""
TOTALS = ("requests", "prompt_tokens", "new_tokens", "verify_steps", "drafted", "accepted", "acceptance_histogram")


def saccade(folder: Path, *arguments: str, devices: int = 2) -> str:
    command = [sys.executable, "-m", "saccade.cli.main", *arguments, f"--trainer.devices={devices}"]
    command += ["--trainer.accelerator=gpu", "--trainer.enable_progress_bar=false"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def newest(folder: Path, name: str, file: str) -> Path:
    return max((folder / "runs" / name).rglob(file), key=lambda path: path.stat().st_mtime)


def decoding_rows(folder: Path, name: str) -> dict[str, dict]:
    records = json.loads(newest(folder, name, "decoding.json").read_text())
    print([(row["name"], row["ranks"], row["dtype"], row["statistics"], row["agreement"]) for row in records])
    return {row["name"]: row for row in records}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fit_resume_and_validate_with_decoders(strategy, tmp_path):
    (tmp_path / "decoding.yaml").write_text(DECODING)
    common = ["--config", "lm/tiny.yaml", "--config", f"strategy/{strategy}.yaml", "--name", strategy]
    saccade(tmp_path, "fit", *common)
    assert newest(tmp_path, strategy, "model.safetensors").stat().st_size > 0
    saccade(tmp_path, "fit", *common, "--ckpt_path", "last", "--trainer.max_steps=30")
    metrics = newest(tmp_path, strategy, "metrics.csv").read_text()
    steps = [line.split(",") for line in metrics.splitlines()]
    column = steps[0].index("step")
    logged = [int(line[column]) for line in steps[1:]]
    assert min(logged) >= 20, "training began again instead of resuming at step 20"
    assert max(logged) in (29, 30)
    saccade(tmp_path, "validate", *common, "--config", "decoding.yaml", "--ckpt_path", "last")
    rows = decoding_rows(tmp_path, strategy)
    assert set(rows) == {"autoregressive", "prompt_lookup", "self_speculative"}
    for row in rows.values():
        assert row["ranks"] == 2
        assert row["statistics"]["requests"] == 11
        assert 0 < row["statistics"]["new_tokens"] <= 11 * 32
        assert row["agreement"]["differing_rows"] == row["agreement"]["near_tie_rows"]
    if strategy == "ddp":
        alone = ["--config", "lm/tiny.yaml", "--name", strategy, "--config", "decoding.yaml", "--ckpt_path", "last"]
        saccade(tmp_path, "validate", *alone, devices=1)
        single = decoding_rows(tmp_path, strategy)
        for name, row in rows.items():
            assert single[name]["ranks"] == 1
            for total in TOTALS:
                assert row["statistics"][total] == single[name]["statistics"][total], (name, total)
