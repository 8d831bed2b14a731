"""Autoregressive decoding: the reference that every other decoder is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from saccade.inference.decoder import Decoder
from saccade.inference.drafting.drafter import Drafter, NoDraft
from saccade.inference.request import Request


@dataclass
class Autoregressive(Decoder):
    """One token of the target's own in every forward; no settings.

    >>> Autoregressive().width
    0
    """

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Proposes nothing."""
        return NoDraft()
