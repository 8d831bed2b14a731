"""The functions of transformers that advance a matrix state, run so that the state behind every token is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Function = Callable[..., Any]


class Rule(Protocol):
    """How a recurrence is run from a given state."""

    def __call__(
        self, scan: Function, step: Function, state: Tensor | None, each: bool, *given: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Runs what ``scan`` would run.

        Args:
            scan: The model's function for a sequence.
            step: The model's function for one token, with which ``model.generate`` decodes.
            state: The state before the sequence ``[batch, ...]``, which stays as it is; ``None`` is none.
            each: Whether the state behind every token is wanted, and not only that behind the last one.
            given: What the layer hands to ``scan``, by position.
            named: And by name.

        Returns:
            The outputs in the form of ``scan``, and the states ``[batch, tokens, ...]`` or ``[batch, ...]``.
        """


@dataclass(frozen=True)
class Kernel:
    """Two functions of one recurrence, as the modules of transformers name them.

    Args:
        scan: Of the one for a sequence.
        step: Of the one for a token.
        rule: How they are run.
    """

    scan: str
    step: str
    rule: Rule


def delta_rule(
    scan: Function,
    step: Function,
    state: Tensor | None,
    each: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule, with one decay for a head (arXiv 2412.06464) or one for each channel (arXiv 2510.26692).

    All tensors are ``[batch, tokens, heads, ...]``, and the state ``[batch, heads, key, value]``.
    """
    named |= {"output_final_state": True}
    if not each:
        made: tuple[Tensor, Tensor] = scan(query, key, value, **named | {"g": g, "beta": beta, "initial_state": state})
        return made
    outputs, states = [], []
    for at in range(query.shape[1]):
        q, k, v, decay, rate = (whole[:, at : at + 1] for whole in (query, key, value, g, beta))
        output, state = step(q, k, v, **named | {"g": decay, "beta": rate, "initial_state": state})
        outputs.append(output)
        states.append(state)
    return _joined(outputs, 1), _stacked(states, 1)


def selective_scan(
    scan: Function,
    step: Function,
    state: Tensor | None,
    each: bool,
    inputs: Tensor,
    dt: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    D: Tensor,  # noqa: N803 - the layers hand it over by this name
    z: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """The selective state space of Mamba (arXiv 2312.00752), whose ``scan`` begins without a state.

    Args:
        scan: See :class:`Rule`; this and the next three.
        step: Changes the state that it is given.
        state: ``[batch, channels, state]``.
        each: Whether all states are wanted.
        inputs: ``[batch, channels, tokens]``, and so are ``dt`` and ``z``.
        dt: Time steps.
        decay: ``[channels, state]``.
        b: ``[batch, state, tokens]``, and so is ``c``.
        c: Output matrix.
        D: ``[channels]``.
        z: Gate.
        delta_bias: ``[channels]``.
        delta_softplus: Whether time steps pass a softplus.
        named: Settings of ``scan``.

    Returns:
        Outputs ``[batch, channels, tokens]`` and the states.
    """
    if state is None and not each:
        more = {"D": D, "z": z, "delta_bias": delta_bias, "delta_softplus": delta_softplus, "return_last_state": True}
        made: tuple[Tensor, Tensor] = scan(inputs, dt, decay, b, c, **named | more)
        return made
    state = inputs.new_zeros(*inputs.shape[:2], decay.shape[-1]) if state is None else state
    outputs, states = [], []
    for at in range(inputs.shape[-1]):
        if each or at == 0:
            state = state.clone()
        x, time, left, right, gate = (whole[..., at] for whole in (inputs, dt, b, c, z))
        outputs.append(
            step(state, x, time, decay, left, right, D, z=gate, dt_bias=delta_bias, dt_softplus=delta_softplus)
        )
        states.append(state)
    return _stacked(outputs, -1), _stacked(states, 1) if each else state


def chunk_scan(
    scan: Function,
    step: Function,
    state: Tensor | None,
    each: bool,
    inputs: Tensor,
    dt: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    D: Tensor,  # noqa: N803 - the layers hand it over by this name
    dt_bias: Tensor,
    dt_softplus: bool,
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """The state space of Mamba 2 (arXiv 2405.21060).

    Args:
        scan: See :class:`Rule`; this and the next three.
        step: Changes the state that it is given.
        state: ``[batch, heads, head_dim, state]``.
        each: Whether all states are wanted.
        inputs: ``[batch, tokens, heads, head_dim]``.
        dt: Time steps ``[batch, tokens, heads]``.
        decay: ``[heads]``.
        b: ``[batch, tokens, groups, state]``, and so is ``c``.
        c: Output matrix.
        D: ``[heads]``.
        dt_bias: ``[heads]``.
        dt_softplus: Whether time steps pass a softplus.
        named: Settings of ``scan``.

    Returns:
        Outputs like ``inputs`` and the states.
    """
    heads, width, size = *inputs.shape[2:], b.shape[-1]
    if not each:
        more = {"D": D, "dt_bias": dt_bias, "dt_softplus": dt_softplus}
        named |= {"initial_states": state, "return_final_states": True}
        made: tuple[Tensor, Tensor] = scan(inputs, dt, decay, b, c, **named | more)
        return made
    state = inputs.new_zeros(len(inputs), heads, width, size) if state is None else state
    # the step has a time step and a decay for every channel
    decay = decay[:, None, None].expand(-1, width, size).float()
    shared = {"dt_bias": dt_bias[:, None].expand(-1, width), "dt_softplus": dt_softplus, "z": None}
    outputs, states = [], []
    for at in range(inputs.shape[1]):
        state = state.clone()
        time = dt[:, at, :, None].expand(-1, -1, width)
        outputs.append(
            step(state, inputs[:, at], time, decay, b[:, at], c[:, at], D[:, None].expand(-1, width), **shared)
        )
        states.append(state)
    return _stacked(outputs, 1), _stacked(states, 1)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _stacked(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0].unsqueeze(axis) if len(parts) == 1 else torch.stack(parts, axis)


KERNELS = (
    Kernel("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule", delta_rule),
    Kernel("chunk_kimi_delta_attention", "recurrent_kimi_delta_attention", delta_rule),
    Kernel("mamba_selective_scan", "mamba_selective_state_update", selective_scan),
    Kernel("mamba2_chunk_scan", "mamba2_selective_state_update", chunk_scan),
)
"""The recurrences that a session can follow."""
