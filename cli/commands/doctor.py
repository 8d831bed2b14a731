"""``saccade doctor``: print versions, devices, and packages that are missing for a feature."""

import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saccade.cli.errors import UsageError
from saccade.common.provenance import device_names, git_state, versions


@dataclass(frozen=True)
class Feature:
    """A feature that needs packages that are not always installed.

    Attributes:
        name: Name of the feature.
        modules: Import names of the packages; all are needed.
        remedy: How to install them.
    """

    name: str
    modules: tuple[str, ...]
    remedy: str

    def missing(self) -> list[str]:
        """Return the import names of packages that are not installed."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]


FEATURES = (
    Feature("training", ("lightning", "torchmetrics", "tokenizers"), "make install"),
    Feature("LoRA", ("peft",), "make install"),
    Feature("layer-skip search", ("skopt",), "make install"),
    Feature("training on several GPUs with ZeRO", ("deepspeed",), "make install EXTRAS=dev,deepspeed"),
    Feature(
        "retrieval",
        ("faiss", "bm25s", "pytrec_eval"),
        "make install EXTRAS=dev,retrieval (with a GPU retrieval-gpu instead, never both)",
    ),
    Feature("video files", ("av",), "make install EXTRAS=dev,video"),
    Feature("GPU kernels", ("triton",), "part of the CUDA builds of torch; not needed without a GPU"),
    Feature("tests and checks", ("pytest", "ruff", "mypy"), "make install"),
)

_BYTES_PER_GIB = 2**30


def _memory_in_gib() -> float | None:
    """Return the main memory of this machine; None if the system does not provide it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _BYTES_PER_GIB
    except (AttributeError, OSError, ValueError):
        return None


def _devices() -> list[str]:
    """Return one line for the processor and one for each accelerator."""
    memory = _memory_in_gib()
    size = "" if memory is None else f", {memory:.0f} GiB memory"
    if not torch.cuda.is_available():
        return [f"{device_names()[0]}{size}; no CUDA device"]
    lines = [f"{os.cpu_count()} CPU cores{size}"]
    for index, name in enumerate(device_names()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        gib = properties.total_memory / _BYTES_PER_GIB
        lines.append(f"cuda:{index} {name}, {gib:.0f} GiB, compute capability {capability}")
    return lines


def run(arguments: Sequence[str]) -> None:
    """Print versions, devices and features.

    Args:
        arguments: Empty, or ``--help``.

    Raises:
        UsageError: There is another argument.
    """
    if list(arguments) in (["--help"], ["-h"]):
        print("usage: saccade doctor\n\nPrint versions, devices, and packages that are missing for a feature.")
        return
    if arguments:
        raise UsageError(f"doctor must have no arguments, got {' '.join(arguments)}: run `saccade doctor`.")
    # a pipe has no width; long lines are kept whole so that they can be searched
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    commit, dirty = git_state()
    table = Table("package", "version", title="versions", title_justify="left")
    for package, version in versions().items():
        table.add_row(package, version)
    if commit is not None:
        table.add_row("git commit here", commit[:12] + (", with changes" if dirty else ""))
    table.add_row("system", f"{platform.system()} {platform.machine()}")
    console.print(table)

    table = Table("device", title="devices", title_justify="left")
    for line in _devices():
        table.add_row(escape(line))
    console.print(table)

    table = Table("feature", "state", "how to get it", title="features", title_justify="left")
    for feature in FEATURES:
        missing = feature.missing()
        state = "[red]missing: " + ", ".join(missing) if missing else "[green]ready"
        table.add_row(feature.name, state, escape(feature.remedy) if missing else "")
    console.print(table)
