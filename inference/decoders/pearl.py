"""PEARL: a draft model that goes on writing while the target verifies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from saccade.inference.parallel.decoder import ParallelDecoder
from saccade.inference.parallel.rounds import LookUp


@dataclass
class Pearl(ParallelDecoder):
    """Parallel speculative decoding (T. Liu et al., ICLR 2025, arXiv 2408.11850).

    In every round the draft model writes ``gamma`` tokens behind the whole text while the target verifies those of the
    round before. So drafting takes no time of its own, and a round gives at most ``gamma`` tokens.

    Args:
        draft_model: The draft model: a path or hub id, loaded at first use in the target's precision, or a loaded
            model.
        gamma: Forwards of the draft model in a round: about as many as take as long as one forward of the target.
        devices: Where the draft model runs: the name of a device, or ``auto``, which is another GPU if there is one
            that the target does not use and no other process decides about, else the target's device. On one GPU both
            share it on two streams; on a processor one works after the other.
        control: ``auto`` chooses by what was measured between rounds without draft, and with up to
            ``gamma`` forwards of the draft model (:class:`saccade.inference.parallel.control.RoundControl`); ``fixed``
            has ``gamma`` of them in every round.
        engine: How forwards of both models run: the name of a kind, or all settings
            (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting outside its range, or a draft model that cannot be loaded or has another vocabulary.
    """

    advice: ClassVar[str] = "give a draft model that is nearer to the model, or smaller"

    def look_up(self) -> LookUp:
        """Nothing."""
        return LookUp()
