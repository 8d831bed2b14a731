"""Runs jobs over the visible GPUs, each in a process of its own, and continues where an earlier call ended."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import TextIO

import torch

from saccade.common.files import write_text


@dataclass(frozen=True)
class Job:
    """A command that runs on one GPU.

    Args:
        name: Unique; also of its log and its mark.
        command: Program and arguments.
        needs: Names of the jobs that must be done before; they come earlier in the list.
        lane: Jobs of one lane run on the same GPU: the lane's number modulo the number of GPUs.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    lane: int = 0


def module(name: str, *arguments: object) -> tuple[str, ...]:
    """The command that runs a Python module with this interpreter."""
    return (sys.executable, "-m", name, *map(str, arguments))


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` names, or the numbers of all GPUs where it is not set.

    Raises:
        ValueError: There is none.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = map(str, range(torch.cuda.device_count())) if named is None else named.split(",")
    gpus = [gpu.strip() for gpu in found if gpu.strip()]
    if not gpus:
        raise ValueError(
            f"No GPU is visible (torch sees {torch.cuda.device_count()}, CUDA_VISIBLE_DEVICES is "
            f"{'not set' if named is None else repr(named)}): make at least one visible."
        )
    return gpus


class Runner:
    """Runs jobs, one at a time on each GPU.

    A job's output goes to ``FOLDER/NAME.log``. When it has ended well, its command is written to ``FOLDER/NAME.done``;
    a later call leaves it out unless its command has changed or one of the jobs that it needs runs again. A job that
    fails costs only the jobs that need it.

    Args:
        jobs: In the order in which they are begun where nothing else decides.
        folder: Takes logs and marks.
        gpus: Names of the GPUs, as ``CUDA_VISIBLE_DEVICES`` takes them.

    Raises:
        ValueError: A name is there twice, or a job needs one that does not come before it.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, gpus: Sequence[str]) -> None:
        known: set[str] = set()
        for job in jobs:
            if job.name in known:
                raise ValueError(f"The job {job.name} is there twice: give each job another name.")
            if missing := sorted(set(job.needs) - known):
                raise ValueError(f"The job {job.name} needs {missing[0]}, which is not before it: put it before.")
            known.add(job.name)
        self.jobs, self.folder, self.gpus = jobs, folder, gpus
        self.undone: dict[str, Job] = {}
        self.failed: set[str] = set()
        self.stopped = False
        self.changed = Condition()

    def run(self) -> int:
        """Runs all jobs that are not done yet.

        Returns:
            0 when all are done, 1 when one failed or was left out.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for job in self.jobs:
            mark = self.mark(job)
            if mark.exists() and mark.read_text() == shlex.join(job.command) and not set(job.needs) & set(self.undone):
                self.say(f"{job.name} was done before; remove {mark} to run it again")
            else:
                mark.unlink(missing_ok=True)
                self.undone[job.name] = job
        threads = [Thread(target=self.work, args=(number,)) for number in range(len(self.gpus))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:  # the running jobs are interrupted too
            self.stopped = True
            raise
        return int(bool(self.failed))

    def work(self, number: int) -> None:
        """Runs the jobs of one GPU: always the first whose needs are done."""
        while job := self.next_job(number):
            try:
                ended_well = self.execute(job, self.gpus[number])
            except (OSError, ValueError) as error:  # its log or its mark cannot be written
                self.say(f"{job.name} failed: {error}", sys.stderr)
                ended_well = False
            with self.changed:
                del self.undone[job.name]
                if not ended_well:
                    self.failed.add(job.name)
                self.changed.notify_all()

    def next_job(self, number: int) -> Job | None:
        """The next job of a GPU; waits for the needs of those that are left, and leaves out what cannot run."""
        with self.changed:
            while not self.stopped:
                mine = [job for job in self.undone.values() if job.lane % len(self.gpus) == number]
                for job in mine:
                    if broken := [name for name in job.needs if name in self.failed]:
                        self.say(f"{job.name} is left out: it needs {broken[0]}, which is not done", sys.stderr)
                        del self.undone[job.name]
                        self.failed.add(job.name)
                        self.changed.notify_all()
                        break
                    if not any(name in self.undone for name in job.needs):
                        return job
                else:
                    if not mine:
                        return None
                    self.changed.wait()
        return None

    def execute(self, job: Job, gpu: str) -> bool:
        """Runs one job to its end, prints in one line how it ended, and returns whether it ended well."""
        log, began = self.folder / f"{job.name}.log", time.monotonic()
        with log.open("w") as stream:
            try:
                ended = subprocess.run(
                    job.command,
                    env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
            except OSError as error:
                stream.write(f"{error}\n")
                ended = 127
        if ended == 0:
            write_text(self.mark(job), shlex.join(job.command))
            self.say(f"{job.name} is done ({time.monotonic() - began:.0f} s)")
        else:
            last = (log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
            self.say(f"{job.name} failed with status {ended}: {last}; the whole output is in {log}", sys.stderr)
        return ended == 0

    def mark(self, job: Job) -> Path:
        """The file that says that a job is done."""
        return self.folder / f"{job.name}.done"

    @staticmethod
    def say(line: str, stream: TextIO | None = None) -> None:
        """Prints a line with the time."""
        print(time.strftime("%T"), line, file=stream, flush=True)


def add_folder(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds the option of the folder that takes logs and marks."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(default),
        help="takes a log for each job and a mark when it is done; a second call continues with the first undone",
    )


def gpus_or_exit(parser: argparse.ArgumentParser) -> list[str]:
    """The visible GPUs; without one, the program ends with one line and exit status 2."""
    try:
        return visible_gpus()
    except ValueError as error:
        parser.exit(2, f"{error}\n")
