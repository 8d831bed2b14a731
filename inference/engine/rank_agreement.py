"""Keeps the forward calls of several processes in step when a model's weights are sharded over them.

Under DeepSpeed ZeRO-3 or FSDP a forward gathers its weights from all ranks: a rank that makes a call alone waits for
ever. Speculative decoding makes different numbers of calls, of different kinds (with and without skipped layers), on
every rank. So before each call the ranks agree on a kind: whoever wants that kind makes the call, the others make a
dummy call of the same kind and ask again. A rank that is done keeps answering until all are (design: ours).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


class RankAgreement:
    """Agreement between ranks about which kind of forward comes next.

    Args:
        dummies: For every kind of forward, in the same order on every rank, a call that runs it on a dummy input.
        device: Device of the tensors exchanged: a GPU under NCCL, the CPU under gloo.
    """

    def __init__(self, dummies: Mapping[str, Callable[[], object]], device: torch.device) -> None:
        self.dummies = dict(dummies)
        self.kinds = list(dummies)
        self.device = device
        self.dummy_calls = 0

    def call(self, kind: str, forward: Callable[[], Result]) -> Result:
        """Runs ``forward``, a call of the given kind, as soon as it is that kind's turn."""
        while True:
            turn = self._agree(kind)
            if turn == kind:
                return forward()
            self._dummy(turn)

    def drain(self) -> None:
        """Answers the calls of the other ranks until none of them wants one."""
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
