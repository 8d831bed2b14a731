"""Autoregressive decoding: the baseline that every other decoder is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from saccade.inference.decoder import EngineDecoder
from saccade.inference.drafting.drafter import Drafter, NoDraft
from saccade.inference.request import Request


@dataclass
class Autoregressive(EngineDecoder):
    """Generates one token with every forward of the target.

    >>> Autoregressive().width
    0

    Args:
        control: Without effect: this decoder drafts nothing.
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting of the engine outside its range.
    """

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """A drafter that proposes no tokens."""
        return NoDraft()
