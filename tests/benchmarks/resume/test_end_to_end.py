"""Every module: a fit that is stopped and continued has the weights of one that was not, bit for bit; and the best."""

import csv
import inspect
import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

import saccade.modules
from benchmarks.resume.interruptions import jobs, write_job
from saccade.callbacks.export import ModelExport
from saccade.cli.main import main
from tests.support.processes import TIME_LIMIT

BATCHES = 14  # every job has at least as many


def weights(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], int]:
    run = max(path for path in (folder / "runs" / name).iterdir() if not path.is_symlink())
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state["state_dict"], state["global_step"]


def check_best(folder: Path, metric: str, mode: str) -> None:
    """The best checkpoint is that of the validation with the best value in the log."""
    (run,) = (path for path in (folder / "runs" / "whole").iterdir() if not path.is_symlink())
    with (run / "logs" / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row[metric]]
    row = {"min": min, "max": max}[mode](rows, key=lambda row: float(row[metric]))  # the first, if there are several
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(rows) > 1
    assert state["global_step"] == int(row["step"]) + 1


def interrupted(arguments: list[str]) -> int:
    """Fits in a process of its own, which ends by a signal; its exit status."""
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(main(arguments)))
    process.start()
    process.join(TIME_LIMIT)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("job", jobs(""))
def test_a_continued_fit_equals_an_uninterrupted_one(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelExport, "on_fit_end", lambda *_: None)  # takes longer than these fits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("SACCADE_RUN_FOLDER", "SACCADE_CKPT_PATH", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(variable, raising=False)
    assert main(["fit", "--config", str(write_job(tmp_path, job)), "--name", "whole"]) == 0
    expected, steps = weights(tmp_path, "whole")
    assert steps >= BATCHES // 2
    if job != "trait":  # its score is not that of a validation
        check_best(tmp_path, *(("val_ndcg_10", "max") if job in ("retriever", "reranker") else ("val_loss", "min")))
    draw, ways = random.Random(job), [("SIGTERM", 2), ("SIGINT", 0), ("SIGKILL", 0), ("SIGINT", 2), ("SIGKILL", 2)]
    kind, workers = ways[list(jobs("")).index(job) % len(ways)]  # each once; the benchmark has them all for every job
    monkeypatch.delenv("SACCADE_CKPT_PATH", raising=False)
    batch = draw.randrange(5, BATCHES)
    config = ["fit", "--config", str(write_job(tmp_path, job, workers)), "--name", f"cut-{kind}"]
    interrupt = ["--trainer.callbacks+=benchmarks.resume.interruptions.Interrupt"]
    interrupt += [f"--trainer.callbacks.kind={kind}", f"--trainer.callbacks.batch={batch}"]
    status = interrupted([*config, *interrupt])
    assert status == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -signal.SIGKILL}[kind], (kind, batch)
    _, reached = weights(tmp_path, f"cut-{kind}")
    assert 0 < reached < steps
    assert main([*config, "--ckpt_path", "last"]) == 0
    found, total = weights(tmp_path, f"cut-{kind}")
    assert total == steps
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert not differing, (kind, batch, reached, differing)


def test_every_module_is_fitted_above():
    """Baselines validate as T2DR does; tests/configs fits each of them and tests its best checkpoint."""
    fitted = {settings["model"]["class_path"].rpartition(".")[2] for settings in jobs("").values()}
    found = {name: getattr(saccade.modules, name) for name in saccade.modules.__all__}
    assert fitted == {
        name
        for name, kind in found.items()
        if inspect.isclass(kind)
        and issubclass(kind, LightningModule)
        and not inspect.isabstract(kind)
        and not kind.__module__.startswith("saccade.modules.multimodal.baselines.")
    }
