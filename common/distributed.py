"""Exchanges between ranks, all with tensors of fixed size, so that ranks with unequal data cannot deadlock."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def reduce_sum(values: Tensor, device: torch.device) -> Tensor:
    """Add a tensor over all ranks.

    Args:
        values: Any shape, the same on every rank; float64 keeps integers exact up to 2**53.
        device: Device of this rank. NCCL moves only tensors on a GPU.

    Returns:
        The sum, on the CPU. Without a process group: a copy of ``values``.
    """
    return _reduce(values, device, "SUM")


def reduce_max(values: Tensor, device: torch.device) -> Tensor:
    """Take the element-wise maximum over all ranks; arguments and result are those of :func:`reduce_sum`."""
    return _reduce(values, device, "MAX")


def _reduce(values: Tensor, device: torch.device, operation: str) -> Tensor:
    result = values.detach().clone()
    if _active():
        result = result.to(device)
        dist.all_reduce(result, op=getattr(dist.ReduceOp, operation))
    return result.cpu()


def gather_integers(values: Sequence[int], capacity: int, device: torch.device) -> tuple[list[list[int]], int]:
    """Send up to ``capacity`` integers of every rank to every rank.

    Args:
        values: The integers of this rank, at most ``capacity``; each from 0 to 2**63 - 1. May be empty.
        capacity: Length of the exchanged tensor, the same on every rank.
        device: Device of this rank.

    Returns:
        One list for each rank, and the index of this rank's own list.
    """
    if not _active():
        return [list(values)], 0
    slots = torch.full((capacity,), -1, dtype=torch.int64)
    slots[: len(values)] = torch.tensor(list(values), dtype=torch.int64)
    slots = slots.to(device)
    shared = [torch.empty_like(slots) for _ in range(dist.get_world_size())]
    dist.all_gather(shared, slots)
    return [[value for value in item.tolist() if value >= 0] for item in shared], dist.get_rank()


def gather_rows(values: Tensor, device: torch.device) -> Tensor:
    """Concatenate the rows of all ranks, in the order of the ranks.

    Args:
        values: Rows of this rank [N, ...]; N may be 0. The shape of a row and its type are the same on every rank.
        device: Device of this rank.

    Returns:
        The rows of all ranks on the CPU, the same on every rank. Without a process group: the rows of this one.
    """
    if not _active():
        return values.detach().cpu()
    counts, _ = gather_integers([len(values)], 1, device)
    slots = values.new_zeros((max(count[0] for count in counts), *values.shape[1:]))
    slots[: len(values)] = values.detach()
    slots = slots.to(device)
    shared = [torch.empty_like(slots) for _ in counts]
    dist.all_gather(shared, slots)
    return torch.cat([rows[: count[0]] for rows, count in zip(shared, counts, strict=True)]).cpu()


def shards_parameters(trainer: Trainer) -> bool:
    """Whether the strategy shards the weights over the ranks, so that every forward pass is a collective call.

    True for DeepSpeed ZeRO stage 3, FSDP and Lightning's ``ModelParallelStrategy``.
    """
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        return bool(strategy.zero_stage_3)
    return isinstance(strategy, (FSDPStrategy, ModelParallelStrategy))
