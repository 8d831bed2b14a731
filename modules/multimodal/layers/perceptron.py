"""The two-layer network that predicts something from a vector."""

from __future__ import annotations

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Create two linear layers with a ReLU between them.

    Args:
        inputs: Width of the input.
        hidden: Width between the layers.
        outputs: Width of the output.
    """
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
