"""Autoregressive decoding: the reference that every other decoder is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.drafter import Drafter, NoDraft
from saccade.inference.request import Request


@dataclass
class Autoregressive(EngineDecoder):
    """One token of the target's own in every forward.

    >>> Autoregressive().width
    0

    Args:
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting of the engine outside its range.
    """

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Proposes nothing."""
        return NoDraft()
