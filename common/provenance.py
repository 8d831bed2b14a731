"""The record of where a result comes from.

Every run folder and every row of measurements contains what :func:`provenance` returns.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "saccade",
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "tokenizers",
    "peft",
    "accelerate",
    "deepspeed",
    "triton",
    "scikit-optimize",
    "jsonargparse",
    "numpy",
)


def provenance(seed: int | None = None) -> dict[str, Any]:
    """Describe the command, the code, the packages and the machine that make a result.

    Args:
        seed: The seed of the run; None where there is none.

    Returns:
        A dictionary that JSON can represent: ``command`` (list of str; of the program only the file name),
        ``commit`` and ``dirty`` (of the git repository of the working directory; both None outside of one),
        ``versions`` (of Python and of those packages that are installed), ``device`` (list of str, one per accelerator,
        else the processor), ``threads`` (that torch uses on the CPU), ``date`` (UTC, ISO 8601) and
        ``seed``.
    """
    commit, dirty = git_state()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "device": device_names(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
    }


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the working directory's repository, and whether the tree differs from it.

    Returns:
        The full commit hash, and True if a tracked file is changed or an untracked file is not ignored. None and None
        without git, outside of a repository, or before its first commit.
    """
    git = shutil.which("git")
    if git is None:
        return None, None

    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(  # noqa: S603 - a fixed program with fixed arguments
                [git, *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None, None
    status = ask("status", "--porcelain")
    return commit, None if status is None else bool(status)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages on which results depend, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "torch" in found:
        # the version of the distribution does not name the accelerator that the build is for
        found["torch"] = str(torch.__version__)
    return found


def device_names() -> list[str]:
    """Names of the visible accelerators, else the processor with its core count, for example ``["NVIDIA H200"]``."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"{_processor_name()} ({os.cpu_count()} cores)"]


def _processor_name() -> str:
    """The processor's model name where the system knows it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.machine()
    return platform.machine()
