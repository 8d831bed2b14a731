"""What depends on how FAISS was built: its import, its GPUs, and its errors in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

T = TypeVar("T")

MAX_GPU_TOP_K = 2048
"""FAISS's GPU indices return no more documents for a query."""

_TOO_FEW = re.compile(
    r"Number of training points \((\d+)\) should be at least as large as number of clusters \((\d+)\)"
)


def faiss_module() -> Any:
    """The optional package.

    Raises:
        ValueError: It is missing.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "VectorIndex: faiss must be installed for vector search, but is not; pip install 'saccade[retrieval]'"
        ) from None
    return faiss


def checked(where: str, call: Callable[[], T], mend: str) -> T:
    """Run something of FAISS; what it refuses becomes one line.

    Args:
        where: Setting and value, the beginning of the message.
        call: What to run.
        mend: What to do about it.

    Returns:
        What it returns.

    Raises:
        ValueError: FAISS refuses.
    """
    try:
        return call()
    except RuntimeError as error:
        # "Error in <C++ function> at <source line>: what went wrong"
        text = " ".join(str(error).split())
        found = _TOO_FEW.search(text)
        if found:
            there, needed = found.groups()
            raise ValueError(
                f"{where}: must have at least {needed} vectors to train on, but there are {there}; {mend}"
            ) from None
        reason = re.sub(r"^Error in .* at \S+?:\d+: ", "", text)
        raise ValueError(f"{where}: must be something that FAISS can do, but it says: {reason}; {mend}") from None


def gpu_count(faiss: Any) -> int | None:
    """GPUs that FAISS can use; None where it is not built for GPUs."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else None


def refuse_without_gpus(faiss: Any, gpus: Sequence[int] | None) -> None:
    """Refuse GPUs that are not there.

    Args:
        faiss: The package.
        gpus: Numbers of those that are wanted; None for any.

    Raises:
        ValueError: FAISS cannot use them.
    """
    count = gpu_count(faiss)
    if count is None:
        raise ValueError(
            f"device: 'cuda' must have a faiss that is built for GPUs, but faiss {faiss.__version__} is not; pip"
            f" uninstall faiss-cpu, pip install 'saccade[retrieval-gpu]', or set device: cpu"
        )
    if count == 0:
        raise ValueError("device: 'cuda' must have a GPU, but faiss sees none; look at nvidia-smi, or set device: cpu")
    odd = [number for number in gpus or () if not 0 <= number < count]
    if odd or (gpus is not None and not gpus):
        raise ValueError(
            f"gpus: must be numbers from 0 to {count - 1}, at least one, but are {list(gpus or ())}; leave it out"
            f" to take all {count}"
        )


class Searcher:
    """What searches for an index: itself, or its copy on GPUs.

    Args:
        faiss: The package.
        index: On the CPU.
        device: "auto", "cpu" or "cuda".
        fp16: Whether the copy is in half precision.
        gpus: Numbers of the GPUs over which the copy is split; None takes all.

    Raises:
        ValueError: "cuda" is asked for and cannot be had.
    """

    def __init__(self, faiss: Any, index: Any, device: str, fp16: bool, gpus: Sequence[int] | None) -> None:
        self.index = index
        if device == "cpu":
            return
        if device == "auto" and not gpu_count(faiss):
            _say("the installed faiss is not built for GPUs" if gpu_count(faiss) is None else "faiss sees no GPU")
            return
        refuse_without_gpus(faiss, gpus)
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True  # the vectors are split, not copied to every GPU
        options.useFloat16 = fp16
        try:
            self.index = checked(
                "device: 'cuda'",
                lambda: faiss.index_cpu_to_gpus_list(index, options, list(gpus) if gpus is not None else None),
                "set device: cpu, or use a factory that FAISS has on GPUs, such as Flat",
            )
        except ValueError as error:
            if device == "cuda":
                raise
            _say(f"{error}")


@cache  # once for one reason
def _say(reason: str) -> None:
    rank_zero_info(f"saccade: vector search runs on the CPU: {reason}")
