"""Steps of fixed width, captured as CUDA graphs over static buffers and replayed (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.captured import capture
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.fused.parts import adapter_states, why_not_fused
from saccade.inference.engine.fused.step import FusedStep
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.engine.masks import DeviceMasks
from saccade.inference.huggingface.models import is_windowed, last_position, text_config, towers
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, layer_output, skip_sets
from saccade.inference.trees import MAX_NODES, TokenTree

Attached = Callable[[bool], AbstractContextManager[None]]
"""Makes a context in which the model's modules use the session's cache; ``True`` also skips its sub-layers."""


class NotCapturedError(RuntimeError):
    """A step cannot be captured as a CUDA graph. The step has not run."""


@dataclass
class Step:
    """Static inputs of a step and, on a GPU, its graph.

    Args:
        tokens: ``[batch, nodes]`` ids.
        layout: ``[2 * batch + 2 * nodes]``: lengths, offsets, depths and ancestor bits in one tensor, which is filled
            with one copy from the host.
        runs: Number of times the step has run.
        captured: The graph, and the logits and states that it writes.
    """

    tokens: Tensor
    layout: Tensor
    runs: int = 0
    captured: tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None] | None = field(default=None, repr=False)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of ``layout``.

        Returns:
            Slots in use ``[batch]``, offsets of rotary positions from slots ``[batch]``, depths ``[nodes]`` and
            ancestor bits ``[nodes]``.
        """
        batch, nodes = self.tokens.shape
        lengths, offsets, depths, ancestors = self.layout.split([batch, batch, nodes, nodes])
        return lengths, offsets, depths, ancestors


class GraphEngine:
    """Runs the steps of a session as CUDA graphs; everything that changes between steps is on the device.

    The batch of a graph is fixed: when rows end, the others move to the front and the outputs of the rest are ignored.
    Steps are padded to a power of two of nodes, so that a few graphs are enough. Without a GPU the same steps run
    uncaptured, which lets tests run them on a CPU.

    Args:
        model: The model; every step reads its current weights.
        batch: Number of rows.
        capacity: Slots of each row for texts; the widest padded step is added.
        skip: Sub-layers that steps with ``skipped=True`` skip.
        observed: Layer whose output is recorded (:class:`saccade.inference.engine.recording.Recording`).
        compressed: The compressed cache of a batch of prompts, which the steps read and write; ``None`` makes a cache
            of the whole texts.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        observed: int | str | None = None,
        compressed: RaggedCache | None = None,
    ) -> None:
        config = text_config(model)
        self.model: Any = model
        self.batch, self.capacity, self.skip, self.observed = batch, capacity, skip, observed
        self.compressed = compressed
        self.storage: KVCache | RaggedCache = compressed or KVCache(
            config.num_hidden_layers, capacity + MAX_NODES, captured=True
        )
        self.cache = session_cache(self.storage, config.num_hidden_layers)
        self._last_position = last_position(model)
        self._windowed = is_windowed(model)
        self.replayed = False  # whether the last step was not the first of its width
        self._pool: Any = None
        self._signature: tuple[Any, ...] = ()
        self.refresh()

    def refresh(self) -> None:
        """Forgets all captured steps if the model's weights lie elsewhere, or its adapters are set otherwise."""
        signature = _signature(self.model)
        if signature == self._signature:
            return
        self._signature = signature
        self._fused = None if why_not_fused(self.model) else FusedStep(self.model)
        self.proven = self._fused is not None
        """Whether replays are known to be correct. A capture of a model's own modules may contain a host value that
        changes from step to step, so the session compares the first replay with an eager step."""
        self._steps: dict[tuple[int, bool], Step] = {}

    def fits(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        observed: int | str | None = None,
    ) -> bool:
        """Whether this engine's buffers and graphs can be used for a call with these arguments."""
        return (
            model is self.model
            and observed == self.observed
            and batch == self.batch
            and (self.compressed is not None or capacity <= self.capacity)
            and skip_sets(skip) == skip_sets(self.skip)
            and _signature(model) == self._signature
        )

    def takes(self, compressed: RaggedCache | None) -> bool:
        """Whether this engine can go on with a compressed cache, which is taken over then; ``None`` is a whole one."""
        if compressed is None or self.compressed is None:
            return compressed is self.compressed
        return self.compressed.take(compressed)

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int],
        offsets: Sequence[int],
        tree: TokenTree,
        skipped: bool,
        attached: Attached,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the model on new tokens. The first step of a width is captured, later ones are replayed.

        Args:
            tokens: ``[rows, nodes]`` ids.
            lengths: Slots in use of every row.
            offsets: Rotary position minus slot, for every row.
            tree: Shape of the tokens.
            skipped: Skip the session's sub-layers.
            attached: Context in which the model's own modules run.

        Returns:
            Logits ``[rows, nodes, vocabulary]`` and the observed layer's output ``[rows, nodes, hidden]`` or ``None``.
            The next step of this width overwrites both.

        Raises:
            ValueError: More than 64 nodes.
            NotCapturedError: The step cannot be captured; eager forwards can continue with the same cache.
        """
        bits = tree.ancestor_bits  # raises an error for more than 64 nodes
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
        # padding nodes have depth 0 and see the prefix and the root; their outputs are not used
        extra = padded - nodes
        ended = [0] * (self.batch - rows)
        layout = [*lengths, *ended, *offsets, *ended, *tree.depths, *[0] * extra, *bits, *[1] * extra]
        on_gpu = tokens.device.type == "cuda"
        # with pinned memory the host does not wait for the copy and can be a whole draft ahead of the device
        step.layout.copy_(torch.tensor(layout, pin_memory=on_gpu), non_blocking=True)
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
            return self._fused(
                step.tokens, positions, lengths, ancestors, depths, self.storage, attention, mlp, self.observed
            )
        masks = DeviceMasks(lengths, ancestors, depths)
        recorded = layer_output(self.model, self.observed)
        ragged = nullcontext() if self.compressed is None else self.compressed.active()
        with attached(skipped), self.storage.on_device(lengths), ragged, masks.active(), recorded as states:
            logits: Tensor = self.model(
                input_ids=step.tokens,
                attention_mask=None if self._windowed else masks.full(),
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        return logits, states[0] if states else None

    def _capture(
        self, step: Step, skipped: bool, attached: Attached
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor | None]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # the runs before the capture write after the lengths, to the slots that the step writes again
            graph, outputs = capture(lambda: self._run(step, skipped, attached), step.tokens.device, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise NotCapturedError(str(error).strip().splitlines()[0]) from error
        step.captured = graph, *outputs
        return step.captured


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """What a captured step depends on besides its inputs: where the weights lie, and the host's part of adapters."""
    return *(place for weight in model.parameters() for place in _addresses(weight)), *adapter_states(model)


def _addresses(weight: Tensor) -> tuple[int, ...]:
    """Where the values of a weight lie; those of a quantised weight are in tensors inside it (torchao)."""
    if type(weight) is not nn.Parameter and hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return tuple(place for name in names for place in _addresses(getattr(weight, name)))
    return (weight.data_ptr(),)


def why_not_captured(model: nn.Module) -> str:
    """The reason why ``engine: auto`` does not capture a model's steps, or an empty string.

    Hooks and replaced forwards run on the host: a graph would run them at its capture only, and not at replays. Those
    of towers do not matter, which no step runs: transformers leaves some on LLaVA's at its first forward.
    """
    unused = {id(part) for tower in towers(model) for part in tower.modules()}
    for path, module in model.named_modules():
        if id(module) in unused:
            continue
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"{path or type(model).__name__} has a hook or a changed forward"
    return ""
