"""Graph engines that a decoder keeps between calls."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

from saccade.inference.engine.captured import Captured
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.fused.parts import why_not_fused
from saccade.inference.engine.graphs import GraphEngine, NotCapturedError, why_not_captured
from saccade.inference.huggingface.models import device_of, layer_kinds, recurrent_layers, weights_in_place
from saccade.inference.huggingface.sublayer_skip import SublayerSkip


class EnginePool:
    """Keeps the graph engines of a decoder between calls, one for each model, and chooses the engine of a call.

    Args:
        settings: The engine settings of the decoder.
    """

    def __init__(self, settings: EngineConfig) -> None:
        self.settings = settings
        self.uncaptured = False  # set by tests: run graph steps on a CPU, without capturing them
        self._idle: list[GraphEngine] = []
        self._lock = threading.Lock()
        self._refused: nn.Module | None = None
        self._warned: set[str] = set()
        self._captured: dict[Hashable, Captured] = {}

    def captured(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """The captured form of a function of tensors, or, if the engine is eager, the function itself.

        Args:
            key: Identifies the function and everything that it depends on besides its tensors.
            function: See :class:`saccade.inference.engine.captured.Captured`.
        """
        if self.settings.kind == "eager":
            return function
        # one for each thread: the static inputs of a graph belong to one call at a time
        own = (threading.get_ident(), key)
        if own not in self._captured:
            self._captured[own] = Captured(function)
        return self._captured[own]

    def lease(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        synced: bool,
        observed: int | str | None = None,
        compressed: RaggedCache | None = None,
    ) -> GraphEngine | None:
        """Takes an engine for one call out of the pool, or creates one.

        Args:
            model: The model.
            batch: Number of rows.
            capacity: Slots of each row.
            skip: Sub-layers that skipped steps skip.
            synced: Whether the forwards of several ranks are kept in step.
            observed: Layer whose output is recorded.
            compressed: The compressed cache of the call, which an engine takes over; ``None`` for a whole one.

        Returns:
            The engine, or ``None`` if steps run eagerly, as while heads are on probation. Return it with
            :meth:`give_back`.
        """
        kind = self.settings.kind
        if kind == "eager" or self._refused is model or (compressed is not None and compressed.trial is not None):
            return None
        device = device_of(model)
        reason = ""
        if device.type != "cuda" and not self.uncaptured:
            reason = f"CUDA graphs need a CUDA device and the model is on {device.type}"
        elif synced:
            reason = "sharded weights are gathered again for every step"
        elif not weights_in_place(model):
            reason = "the model's weights are moved to the device for every forward"
        elif len({weight.device for weight in model.parameters()}) > 1:
            reason = "the model is on several devices"
        elif "chunked_attention" in layer_kinds(model):
            reason = "the model attends in chunks"
        elif recurrent_layers(model):
            reason = "the model has recurrent layers, whose states are rolled back between the steps"
        if reason and kind == "graph":
            self._warn_once(f"{reason}, so steps run eagerly instead of as graphs.")
        if reason or (kind == "auto" and why_not_captured(model)):
            return None
        with self._lock:
            for index, engine in enumerate(self._idle):
                if engine.fits(model, batch, capacity, skip, observed) and engine.takes(compressed):
                    return self._idle.pop(index)
            # free idle engines of this model: they do not fit the call and would only hold memory
            mine = [engine for engine in self._idle if engine.model is model]
            self._idle = [engine for engine in self._idle if engine.model is not model]
        if compressed is not None:
            for engine in mine:  # one engine for prompts of many sizes is as large as the largest of them
                if engine.compressed is not None:
                    compressed.reserve(engine.compressed)
            return GraphEngine(model, batch, capacity, skip, observed, compressed)
        grain = max(256, capacity // 8)
        if kind == "graph" and (slower := why_not_fused(model)):
            self._warn_once(f"{type(model).__name__}'s own modules run in the graphs, without fused kernels: {slower}.")
        return GraphEngine(model, batch, -(-capacity // grain) * grain, skip, observed)

    def refuse(self, model: nn.Module, error: NotCapturedError) -> None:
        """Makes later calls with this model run eagerly, with a warning, because its steps cannot be captured."""
        self._refused = model
        self._warn_once(
            f"a step of {type(model).__name__} cannot be captured ({error}), so steps run eagerly instead of as graphs."
        )

    def _warn_once(self, message: str) -> None:
        """Issues every warning once."""
        if message not in self._warned:
            warnings.warn(f"engine: {message}", stacklevel=2)
            self._warned.add(message)

    def give_back(self, engine: GraphEngine) -> None:
        """Returns an engine to the pool, for later calls."""
        if engine.compressed is not None:
            engine.compressed.let_go()
        with self._lock:
            self._idle.append(engine)

    def clear(self) -> None:
        """Frees all buffers and graphs."""
        self._idle.clear()
        self._captured.clear()
        self._refused = None
