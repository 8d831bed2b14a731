"""Time the forwards of a model with and without its sub-layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from saccade.common.timing import median_seconds
from saccade.inference import Session
from saccade.inference.drafting.skip_scores import ForwardCosts, SkipSet
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, decoder_layers


def measure_costs(model: nn.Module, prompt: Sequence[int], draft_length: int, repeats: int = 15) -> ForwardCosts:
    """Time a model's forwards: complete, without attention and without MLPs.

    The layers of a decoder have the same shapes, so the mean over layers is the cost of each. It is computed from the
    difference of whole forwards, because timers around single sub-layers would make the device wait.

    Args:
        model: The model, in evaluation mode.
        prompt: Tokens of the prefix.
        draft_length: Largest number of draft tokens in a round; a verification is one token wider.
        repeats: Number of timed calls of each kind; the median is used.

    Returns:
        The costs in seconds.
    """
    layers = len(decoder_layers(model))
    everything = range(layers)

    def timed(skip: SkipSet, tokens: int) -> float:
        switch = SublayerSkip(model, skip.attention, skip.mlp)
        with Session(model, len(prompt) + tokens, skip=switch) as session:
            session.prefill([list(prompt)])
            ids = torch.full((1, tokens), int(prompt[-1]), device=session.device)
            return median_seconds(lambda: session.forward(ids, skipped=len(skip) > 0), repeats, session.device)

    full = timed(SkipSet(), 1)
    no_attention = timed(SkipSet(tuple(everything), ()), 1)
    no_mlp = timed(SkipSet((), tuple(everything)), 1)
    attention = max(full - no_attention, 0.0) / layers
    mlp = max(full - no_mlp, 0.0) / layers
    rest = max(full - layers * (attention + mlp), 0.0)
    return ForwardCosts(attention, mlp, rest, layers, draft_length + 1, timed(SkipSet(), draft_length + 1))
