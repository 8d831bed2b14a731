"""Recurrences run token by token: outputs are those of the model's own scan, states those of its beginnings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.jamba import modeling_jamba
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.qwen3_next import modeling_qwen3_next

from saccade.inference.recurrent.kernels import KERNELS, Kernel

BATCH, TOKENS, HEADS, WIDTH, SIZE = 2, 5, 2, 3, 4
MODULES: dict[str, Any] = {
    "torch_chunk_gated_delta_rule": modeling_qwen3_next,
    "chunk_kimi_delta_attention": modeling_kimi_linear,
    "mamba_selective_scan": modeling_jamba,
    "mamba2_chunk_scan": modeling_mamba2,
}


def inputs(kernel: Kernel, tokens: int) -> tuple[list[Tensor], dict[str, Any]]:
    """What a layer hands to the scan, of the first tokens of one text."""
    torch.manual_seed(0)

    def drawn(*shape: int, along: int) -> Tensor:
        return torch.randn(shape).narrow(along, 0, tokens)

    heads = BATCH, TOKENS, HEADS
    if kernel.rule.__name__ == "delta_rule":
        query, key, value = (drawn(*heads, SIZE, along=1) for _ in range(3))
        decay = heads if kernel.scan.startswith("torch") else (*heads, SIZE)
        named = {"g": -drawn(*decay, along=1).abs(), "beta": drawn(*heads, along=1).sigmoid()}
        return [query, key, value], named | {"use_qk_l2norm_in_kernel": True, "output_final_state": True}
    if kernel.rule.__name__ == "selective_scan":
        x, dt, z = (drawn(BATCH, WIDTH, TOKENS, along=2) for _ in range(3))
        b, c = (drawn(BATCH, SIZE, TOKENS, along=2) for _ in range(2))
        named = {"D": torch.randn(WIDTH), "z": z, "delta_bias": torch.randn(WIDTH), "delta_softplus": True}
        return [x, dt, -torch.rand(WIDTH, SIZE), b, c], named | {"return_last_state": True}
    x, dt = drawn(*heads, WIDTH, along=1), drawn(*heads, along=1)
    b, c = (drawn(BATCH, TOKENS, 1, SIZE, along=1) for _ in range(2))
    named = {"D": torch.randn(HEADS), "dt_bias": torch.randn(HEADS), "dt_softplus": True, "chunk_size": 4}
    return [x, dt, -torch.rand(HEADS), b, c], named | {"return_final_states": True}


def along(kernel: Kernel) -> int:
    """The axis of an output's tokens."""
    return 2 if kernel.rule.__name__ == "selective_scan" else 1


@pytest.mark.parametrize("begun", [False, True], ids=["a text", "behind a text"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.scan)
def test_every_state_is_that_of_a_beginning(kernel: Kernel, begun: bool) -> None:
    module = MODULES[kernel.scan]
    scan, step = getattr(module, kernel.scan), getattr(module, kernel.step)
    axis, first = along(kernel), 2 if begun else 0

    def cut(whole: list[Tensor], named: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
        def rest(value: Any) -> Any:
            ours = isinstance(value, Tensor) and value.ndim > axis and value.shape[axis] == TOKENS
            return value.narrow(axis, first, TOKENS - first) if ours else value

        return [rest(value) for value in whole], {name: rest(value) for name, value in named.items()}

    state = None
    if begun:
        given, named = inputs(kernel, first)
        _, state = scan(*given, **named)
        state = state.clone()
    before = None if state is None else state.clone()
    given, named = inputs(kernel, TOKENS)
    right, last = scan(*given, **named)
    rest, settings = cut(given, named)
    for each in (True, False):
        out, states = kernel.rule(scan, step, state, each, *rest, **settings)
        torch.testing.assert_close(out, right.narrow(axis, first, TOKENS - first), rtol=1e-4, atol=1e-5)
        if each:
            for at in range(TOKENS - first):
                given, named = inputs(kernel, first + at + 1)
                torch.testing.assert_close(states[:, at], scan(*given, **named)[1], rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(states, last, rtol=1e-4, atol=1e-5)
        assert before is None or torch.equal(state, before), "the session's state was written to"
