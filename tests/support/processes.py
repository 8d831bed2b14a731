"""Processes that tests start: their environment and their time limit, and two ranks."""

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 600
"""Seconds that a process, or whatever else a test waits for, may take: long enough for a machine under load."""
_RANKS = (0, 1)


def environment() -> dict[str, str]:
    """This process's, for one that imports `tests`, is no rank of anything yet, and computes on one thread."""
    kept = {key: value for key, value in os.environ.items() if key not in {"LOCAL_RANK", "WORLD_SIZE"}}
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *known])}


def run_ranks(module: str, folder: Path) -> None:
    """Run a module of the tests as two ranks of one node, as `torchrun` would, and fail with the error of either.

    Lightning's `devices=2, strategy="ddp"` finds both processes there. That it can start the second one itself is a
    test of its own, in tests/configs.

    Args:
        module: Run as `python -m` does, with the folder as its only argument.
        folder: What it may write into.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    logs = [folder / f".rank{rank}.log" for rank in _RANKS]
    with selectors.DefaultSelector() as waiting:
        for rank in _RANKS:
            ranked = {**environment(), **place, "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            logs[rank].touch()
            job = {"module": module, "folder": str(folder), "environment": ranked, "log": str(logs[rank])}
            _host(rank).stdin.write(json.dumps(job) + "\n")
            _host(rank).stdin.flush()
            waiting.register(_host(rank).stdout, selectors.EVENT_READ, rank)
        while waiting.get_map():
            ended = waiting.select(TIME_LIMIT)
            for key, _ in ended:
                waiting.unregister(key.fileobj)
                if key.fileobj.readline() != "0\n":
                    _end_hosts()  # the other rank may wait for this one for ever
                    raise AssertionError(f"rank {key.data} failed:\n{logs[key.data].read_text()[-3000:]}")
            if not ended:
                _end_hosts()
                raise AssertionError(
                    "\n".join([f"no rank ended in {TIME_LIMIT} s", *(log.read_text() for log in logs)])
                )
    for log in logs:
        log.unlink()


@cache
def _host(rank: int) -> subprocess.Popen:
    """The process whose copies are this rank."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.rank_host"], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@atexit.register
def _end_hosts() -> None:
    """End the hosts and what they run; the next ranks get new ones."""
    if _host.cache_info().currsize:
        for rank in _RANKS:
            os.killpg(_host(rank).pid, signal.SIGKILL)
            _host(rank).communicate()
        _host.cache_clear()
