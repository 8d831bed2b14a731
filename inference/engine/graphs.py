"""Steps of a fixed width as replayed CUDA graphs over static buffers (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.fused import FusedStep, why_not_fused
from saccade.inference.engine.hf_attention import device_step
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.huggingface.models import last_position, text_config
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, layer_output, skip_sets
from saccade.inference.trees import MAX_NODES, TokenTree

Attached = Callable[[bool], AbstractContextManager[None]]


"""Hands a model to its session for the time of a forward; true leaves the skipped sub-layers out."""


_WARM_UPS = 2  # runs before a capture: kernels are compiled and libraries set up outside of it


class NotCapturedError(RuntimeError):
    """A model's step cannot become a CUDA graph; it has not run."""


@dataclass
class Step:
    """Static inputs of one step and, on a GPU, its graph.

    Args:
        tokens: ``[batch, nodes]`` ids.
        known: All that the host knows beside them, in one piece: ``[2 * batch + 2 * nodes]``.
        runs: How often the step has run.
        captured: The graph, and the logits and states that it writes.
    """

    tokens: Tensor
    known: Tensor
    runs: int = 0
    captured: tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None] | None = field(default=None, repr=False)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of ``known``.

        Slots in use ``[batch]``, what rotary positions are ahead of them ``[batch]``, depths ``[nodes]`` and ancestors'
        bits ``[nodes]``.
        """
        batch, nodes = self.tokens.shape
        lengths, offsets, depths, ancestors = self.known.split([batch, batch, nodes, nodes])
        return lengths, offsets, depths, ancestors


class GraphEngine:
    """Runs a session's short forwards with everything that changes between them on the device.

    Rows that end leave the batch as it is captured: the others move to the front, the rest runs along unread. Steps are
    padded to the next power of two of nodes, so that a few graphs serve all. Without a GPU the same steps run
    uncaptured, which is what tests on a processor see.

    Args:
        model: The model; its weights are read where they lie at every step.
        batch: Rows.
        capacity: Slots of each row that texts may use; the widest padded step is added.
        skip: Sub-layers that skipped steps leave out.
        observed: Layer whose output is noted (:class:`saccade.inference.engine.recording.Recording`).
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        observed: int | str | None = None,
    ) -> None:
        config = text_config(model)
        self.model: Any = model
        self.batch, self.capacity, self.skip, self.observed = batch, capacity, skip, observed
        self.storage = KVCache(config.num_hidden_layers, capacity + MAX_NODES, captured=True)
        self.cache = session_cache(self.storage, config.num_hidden_layers)
        self._last_position = last_position(model)
        self._fused = None if why_not_fused(model) else FusedStep(model)
        self.proven = self._fused is not None
        """Whether replayed steps are known to be right; a model's own modules may have been captured with a value of
        the host that changes from step to step, so their first replay is compared with an eager step."""
        self.replayed = False  # whether the last step had run before
        self._steps: dict[tuple[int, bool], Step] = {}
        self._pool: Any = None
        self._signature = _addresses(model)

    def fits(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        observed: int | str | None = None,
    ) -> bool:
        """Whether this engine's buffers and graphs serve another call."""
        return (
            model is self.model
            and observed == self.observed
            and batch == self.batch
            and capacity <= self.capacity
            and skip_sets(skip) == skip_sets(self.skip)
            and _addresses(model) == self._signature
        )

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        offsets: Sequence[int],
        tree: TokenTree,
        skipped: bool,
        attached: Attached,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the model on new tokens; a capture at the first step of a width, replays later.

        Args:
            tokens: ``[rows, nodes]`` ids.
            lengths: Slots in use of every row.
            offsets: What every row's rotary positions are ahead of its slots.
            tree: Shape of the tokens.
            skipped: Leave out the skipped sub-layers.
            attached: Hands the model's modules to the session; entered where they themselves run.

        Returns:
            Logits ``[rows, nodes, vocabulary]`` and the observed layer's output ``[rows, nodes, hidden]``, both
            overwritten by the next step of this width.

        Raises:
            ValueError: More than 64 nodes.
            NotCapturedError: The step cannot be captured; eager forwards go on over the same cache.
        """
        bits = tree.ancestor_bits  # refuses more than 64 nodes
        rows, nodes = tokens.shape
        padded = min(MAX_NODES, 1 << (nodes - 1).bit_length())
        step = self._steps.get((padded, skipped))
        if step is None:
            step = self._steps[padded, skipped] = Step(
                torch.zeros(self.batch, padded, dtype=torch.long, device=tokens.device),
                torch.zeros(2 * self.batch + 2 * padded, dtype=torch.long, device=tokens.device),
            )
        step.runs += 1
        self.replayed = step.runs > 1
        step.tokens[:rows, :nodes].copy_(tokens)
        # nobody looks at padding nodes: at depth 0 they see the prefix and the root
        extra = padded - nodes
        ended = [0] * (self.batch - rows)
        known = [*lengths, *ended, *offsets, *ended, *tree.depths, *[0] * extra, *bits, *[1] * extra]
        on_gpu = tokens.device.type == "cuda"
        # from pinned memory the host does not wait for the copy: it may be a whole draft ahead of the device
        step.known.copy_(torch.tensor(known, pin_memory=on_gpu), non_blocking=True)
        if on_gpu:
            graph, logits, states = step.captured or self._capture(step, skipped, attached)
            graph.replay()
        else:
            logits, states = self._run(step, skipped, attached)
        return logits[:rows, :nodes], None if states is None else states[:rows, :nodes]

    def _run(self, step: Step, skipped: bool, attached: Attached) -> tuple[Tensor, Tensor | None]:
        lengths, offsets, depths, ancestors = step.parts()
        positions = ((lengths + offsets)[:, None] + depths).clamp(max=self._last_position)
        if self._fused is not None:
            attention, mlp = skip_sets(self.skip) if skipped else (frozenset(), frozenset())
            return self._fused(step.tokens, positions, lengths, ancestors, self.storage, attention, mlp, self.observed)
        device_side = device_step(lengths, ancestors)
        noted = layer_output(self.model, self.observed)
        with attached(skipped), self.storage.on_device(lengths), device_side, noted as states:
            logits: Tensor = self.model(
                input_ids=step.tokens,
                # any mask of four dimensions keeps transformers from making one; the device's bits say what is seen
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=step.tokens.device),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        return logits, states[0] if states else None

    def _capture(
        self, step: Step, skipped: bool, attached: Attached
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        side = torch.cuda.Stream(step.tokens.device)
        side.wait_stream(torch.cuda.current_stream(step.tokens.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # they write behind the lengths, where the step itself writes again
                self._run(step, skipped, attached)
        torch.cuda.current_stream(step.tokens.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                made = self._run(step, skipped, attached)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotCapturedError(str(error).strip().splitlines()[0]) from error
        step.captured = graph, *made
        return step.captured


def _addresses(model: nn.Module) -> tuple[int, ...]:
    return tuple(weight.data_ptr() for weight in model.parameters())


def why_not_captured(model: nn.Module) -> str:
    """Why a model's steps should not be captured unasked, or an empty string.

    Hooks and changed forwards are code of the host: a graph would run them once, at its capture, and never again.
    """
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{path or type(model).__name__} has a hook or a changed forward"
    if any(weight.device.type == "meta" for weight in model.parameters()):
        return "some of its weights are not loaded"
    return ""
