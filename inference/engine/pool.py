"""Graph engines kept from call to call, one for each model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

from saccade.inference.engine.captured import Captured
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.fused import why_not_fused
from saccade.inference.engine.graphs import GraphEngine, NotCapturedError, why_not_captured
from saccade.inference.huggingface.models import device_of
from saccade.inference.huggingface.sublayer_skip import SublayerSkip


class EnginePool:
    """Keeps the graph engines of a decoder from call to call, one for each model, and chooses the engine of a call.

    Args:
        settings: Of the decoder.
    """

    def __init__(self, settings: EngineConfig) -> None:
        self.settings = settings
        self.uncaptured = False  # tests set it: the graphs' steps on a processor, one by one
        self._idle: list[GraphEngine] = []
        self._refused: nn.Module | None = None
        self._told: set[str] = set()
        self._captured: dict[Hashable, Captured] = {}

    def captured(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of tensors as a graph, where this pool's engine makes graphs; else the function itself.

        Args:
            key: Names the function and all that it depends on beside its tensors.
            function: See :class:`saccade.inference.engine.captured.Captured`.
        """
        if self.settings.kind == "eager":
            return function
        if key not in self._captured:
            self._captured[key] = Captured(function)
        return self._captured[key]

    def lease(
        self,
        model: nn.Module,
        batch: int,
        capacity: int,
        skip: SublayerSkip | None,
        synced: bool,
        observed: int | str | None = None,
    ) -> GraphEngine | None:
        """An engine for one call, or ``None`` where steps run eagerly."""
        kind = self.settings.kind
        if kind == "eager" or self._refused is model:
            return None
        device = device_of(model)
        reason = ""
        if device.type != "cuda" and not self.uncaptured:
            reason = f"CUDA graphs need a CUDA device and the model is on {device.type}"
        elif synced:
            reason = "sharded weights are gathered anew for every step"
        elif len({weight.device for weight in model.parameters()}) > 1:
            reason = "the model lies on several devices"
        if reason and kind == "graph":
            self._tell(f"{reason}, so steps run eagerly instead of as graphs.")
        if reason or (kind == "auto" and why_not_captured(model)):
            return None
        for index, engine in enumerate(self._idle):
            if engine.fits(model, batch, capacity, skip, observed):
                return self._idle.pop(index)
        # an idle engine of this model that does not fit would only hold memory
        self._idle = [engine for engine in self._idle if engine.model is not model]
        grain = max(256, capacity // 8)
        if kind == "graph" and (slower := why_not_fused(model)):
            self._tell(f"{type(model).__name__}'s own modules run in the graphs, without fused kernels: {slower}.")
        return GraphEngine(model, batch, -(-capacity // grain) * grain, skip, observed)

    def refuse(self, model: nn.Module, error: NotCapturedError) -> None:
        """Remembers that a model's steps cannot be captured, and says so."""
        self._refused = model
        self._tell(
            f"a step of {type(model).__name__} cannot be captured ({error}), so steps run eagerly instead of as graphs."
        )

    def _tell(self, message: str) -> None:
        """Warns once about each thing."""
        if message not in self._told:
            warnings.warn(f"engine: {message}", stacklevel=2)
            self._told.add(message)

    def give_back(self, engine: GraphEngine) -> None:
        """Keeps an engine for the next call."""
        self._idle.append(engine)

    def clear(self) -> None:
        """Frees the buffers and graphs."""
        self._idle.clear()
        self._captured.clear()
        self._refused = None
