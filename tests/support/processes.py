"""The environment and the time limit of processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 600
"""Seconds that a process, or whatever else a test waits for, may take: long enough for a machine under load."""


def environment() -> dict[str, str]:
    """This process's, for one that imports `tests`, is no rank of anything yet, and computes on one thread."""
    kept = {key: value for key, value in os.environ.items() if key not in {"LOCAL_RANK", "WORLD_SIZE"}}
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *known])}


def run_script(module: str, folder: Path) -> None:
    """Runs a module of the tests in a process of its own, which writes into a folder, and fails with its error."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
