"""Kills fits of every module at random moments, continues them, and compares the weights with an uninterrupted fit.

Each fit is a process of its own, `saccade fit`. It is ended by SIGKILL, SIGTERM or Ctrl-C a random time after a random
batch, continued with `--ckpt_path last`, and its final weights are compared with those of a fit that was not ended, bit
for bit. The loader has no or two processes in turn. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.resume.kills [--kills 5] [--language 10] [--jobs NAME ...]
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.resume.interruptions import jobs, write_job
from benchmarks.rows import positive, replace, row

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
LATEST_BATCH = 13  # every job has at least 14 batches
LONGEST_DELAY = 0.05  # seconds after the batch; a batch of these fits takes about 10 ms


def fit(folder: Path, *arguments: str) -> None:
    """Runs `saccade fit` in a folder; its exit status depends on what ends it."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "saccade.cli.main", "fit", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        timeout=1800,
        check=False,
    )


def final(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], int]:
    """The weights and the step of the newest checkpoint of a run."""
    run = max(path for path in (folder / "runs" / name).iterdir() if not path.is_symlink())
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state["state_dict"], int(state["global_step"])


def measure(job: str, kills: int, seed: int) -> list[dict[str, object]]:
    """Kills and continues a job several times.

    Args:
        job: A name of `jobs`.
        kills: How often.
        seed: Of the moments.

    Returns:
        A row for each signal: the share of the continued fits whose weights are equal.
    """
    draw = random.Random(f"{seed}/{job}")
    equal: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        fit(folder, "--config", str(write_job(folder, job)), "--name", "whole")
        expected, steps = final(folder, "whole")
        for number in track(range(kills), description=job, console=Console(stderr=True)):
            kind, batch = SIGNALS[number % len(SIGNALS)], draw.randrange(4, LATEST_BATCH)
            name = f"cut-{number}"
            shared = ("--config", str(write_job(folder, job, num_workers=2 * (number % 2))), "--name", name)
            fit(
                folder, *shared, "--trainer.callbacks+=benchmarks.resume.interruptions.Interrupt",
                f"--trainer.callbacks.kind={kind}", f"--trainer.callbacks.batch={batch}",
                f"--trainer.callbacks.delay={draw.uniform(0.001, LONGEST_DELAY)}",
            )  # fmt: skip
            _, reached = final(folder, name)
            fit(folder, *shared, "--ckpt_path", "last")
            found, total = final(folder, name)
            same = total == steps and all(torch.equal(value, found[key]) for key, value in expected.items())
            equal.setdefault(kind, []).append(float(same))
            print(f"{job} {kind} after batch {batch}: saved step {reached} of {steps}, equal: {same}", file=sys.stderr)
    return [
        row(
            "resume", job, kind, "equal_weights", [sum(values) / len(values)], "share", bound=1.0, seed=seed,
            extra={"interruptions": len(values)},
        )
        for kind, values in equal.items()
    ]  # fmt: skip


def main() -> None:
    """Measures, prints and stores the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=positive, default=5, help="of each module")
    parser.add_argument("--language", type=positive, default=10, help="of the language model")
    parser.add_argument("--jobs", nargs="+", default=list(jobs("")), choices=list(jobs("")))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = Table("module", "signal", "interruptions", "equal weights")
    for job in arguments.jobs:
        rows = measure(job, arguments.language if job == "language" else arguments.kills, arguments.seed)
        replace(rows)
        for found in rows:
            table.add_row(*(str(found[key]) for key in ("case", "method", "interruptions", "value")))
    Console().print(table)


if __name__ == "__main__":
    main()
