"""The import of FAISS, its errors as one line, and its GPUs, which depend on how FAISS was built."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_info

T = TypeVar("T")

MAX_GPU_TOP_K = 2048
"""Most documents that an index of FAISS on a GPU returns for a query."""

_TOO_FEW = re.compile(
    r"Number of training points \((\d+)\) should be at least as large as number of clusters \((\d+)\)"
)


def faiss_module() -> Any:
    """Import the optional package faiss.

    Raises:
        ValueError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "VectorIndex needs the package faiss, which is not installed: pip install 'saccade[retrieval]'."
        ) from None
    return faiss


def checked(where: str, call: Callable[[], T], advice: str) -> T:
    """Call FAISS and report its errors as one line.

    Args:
        where: Setting and value, the beginning of the message.
        call: The call.
        advice: What to do, the end of the message.

    Returns:
        The result of the call.

    Raises:
        ValueError: FAISS raised a `RuntimeError`.
    """
    try:
        return call()
    except RuntimeError as error:
        # "Error in <C++ function> at <source line>: what went wrong"
        text = " ".join(str(error).split())
        found = _TOO_FEW.search(text)
        if found:
            there, needed = found.groups()
            raise ValueError(f"{where} needs at least {needed} vectors to train on, got {there}: {advice}.") from None
        reason = re.sub(r"^Error in .* at \S+?:\d+: ", "", text).rstrip(".")
        raise ValueError(f"{where} is refused by FAISS ({reason}): {advice}.") from None


def gpu_count(faiss: Any) -> int | None:
    """Number of GPUs that FAISS can use; None if it is not built for GPUs."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else None


def refuse_without_gpus(faiss: Any, gpus: Sequence[int] | None) -> None:
    """Check that FAISS can use the GPUs.

    Args:
        faiss: The package.
        gpus: Numbers of the GPUs; None for all.

    Raises:
        ValueError: FAISS cannot use them.
    """
    count = gpu_count(faiss)
    if count is None:
        raise ValueError(
            f"device 'cuda' needs a faiss that is built for GPUs, got faiss {faiss.__version__} for the CPU: pip"
            " uninstall faiss-cpu and pip install 'saccade[retrieval-gpu]', or set device to cpu."
        )
    if count == 0:
        raise ValueError("device 'cuda' needs a GPU, and faiss sees none: check nvidia-smi, or set device to cpu.")
    odd = [number for number in gpus or () if not 0 <= number < count]
    if odd or (gpus is not None and not gpus):
        raise ValueError(
            f"gpus must be numbers from 0 to {count - 1}, at least one, got {list(gpus or ())}: correct it, or leave it"
            f" out to use all {count}."
        )


class Searcher:
    """The index that answers queries: the one on the CPU, or a copy of it on GPUs.

    Args:
        faiss: The package.
        index: The index on the CPU.
        device: "auto", "cpu" or "cuda".
        fp16: Whether the copy is in half precision.
        gpus: Numbers of the GPUs over which the copy is split; None uses all.

    Raises:
        ValueError: `device` is "cuda", and FAISS cannot use a GPU for this index.
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
                "device 'cuda'",
                lambda: faiss.index_cpu_to_gpus_list(index, options, list(gpus) if gpus is not None else None),
                "set device to cpu, or use a factory that FAISS supports on GPUs, such as Flat",
            )
        except ValueError as error:
            if device == "cuda":
                raise
            _say(f"{error}")


@cache  # each reason is logged once
def _say(reason: str) -> None:
    rank_zero_info(f"saccade: vector search runs on the CPU: {reason}")
