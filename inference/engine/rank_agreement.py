"""Keeps the forward calls of several ranks in step when the weights of a model are sharded over them.

With DeepSpeed ZeRO-3 or FSDP every forward gathers weights from all ranks, so a rank that calls a forward alone waits
for ever. In speculative decoding the ranks make different numbers of calls, of different kinds (with and without
skipped layers). Before each call the ranks therefore agree on a kind: ranks that need this kind make their call, the
others make a dummy call of the same kind and ask again. A rank that has finished joins in until all have finished. The
design is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


class RankAgreement:
    """Agrees with the other ranks on the kind of the next forward.

    Args:
        dummies: For every kind of forward a function that runs it on a dummy input; in the same order on every rank.
        device: Device of the exchanged tensors: a GPU for NCCL, the CPU for gloo.
    """

    def __init__(self, dummies: Mapping[str, Callable[[], object]], device: torch.device) -> None:
        self.dummies = dict(dummies)
        self.kinds = list(dummies)
        self.device = device
        self.dummy_calls = 0

    def call(self, kind: str, forward: Callable[[], Result]) -> Result:
        """Runs ``forward`` when the ranks agree on its kind, and dummy calls of other kinds until then."""
        while True:
            turn = self._agree(kind)
            if turn == kind:
                return forward()
            self._dummy(turn)

    def drain(self) -> None:
        """Joins the calls of the other ranks with dummy calls until none of them needs another call."""
        while (turn := self._agree(None)) is not None:
            self._dummy(turn)

    def _dummy(self, kind: str | None) -> None:
        if kind is not None:
            self.dummy_calls += 1
            self.dummies[kind]()

    def _agree(self, kind: str | None) -> str | None:
        wanted = torch.zeros(len(self.kinds), dtype=torch.int32, device=self.device)
        if kind is not None:
            wanted[self.kinds.index(kind)] = 1
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        flags = wanted.tolist()
        return self.kinds[flags.index(1)] if 1 in flags else None
