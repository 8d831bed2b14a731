"""Where the Triton kernels of a test run: compiled on CUDA, else interpreted on the CPU (`tests/conftest.py`)."""

import inspect
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def patch_once_a_launch() -> None:
    """Make the interpreter replace Triton's language once in a launch, and not in every call of a function too.

    Looking for what is to be replaced, which then is replaced already, takes a third of the time of the tests.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch, replaced = interpreter._patch_lang, set()

    def patch_lang(function: Any) -> Any:
        modules = {
            id(item) for item in function.__globals__.values() if inspect.ismodule(item) and item in (tl, tl.core)
        }
        if modules and modules <= replaced:
            return interpreter._LangPatchScope()
        scope, launches = patch(function), not replaced
        replaced.update(modules)
        if launches:
            restore = scope.restore
            scope.restore = lambda: (restore(), replaced.clear())
        return scope

    interpreter._patch_lang = patch_lang


if DEVICE == "cpu":
    patch_once_a_launch()

from saccade.inference.engine.kernels import experts  # noqa: E402
from saccade.inference.engine.kernels.chunks import triton_choose, triton_fetch  # noqa: E402
from saccade.inference.engine.kernels.decode_attention import (  # noqa: E402
    triton_decode_attention,
    triton_ragged_attention,
)
from saccade.inference.engine.kernels.experts import triton_experts, triton_experts_add  # noqa: E402
from saccade.inference.engine.kernels.linear import triton_add, triton_linear  # noqa: E402
from saccade.inference.engine.kernels.noise import triton_gumbel_noise  # noqa: E402
from saccade.inference.engine.kernels.norms import triton_norm  # noqa: E402
from saccade.inference.engine.kernels.observe import triton_attention_scores  # noqa: E402
from saccade.inference.engine.kernels.rotation import triton_rotate  # noqa: E402

__all__ = [
    "DEVICE",
    "experts",
    "triton_add",
    "triton_attention_scores",
    "triton_choose",
    "triton_decode_attention",
    "triton_experts",
    "triton_experts_add",
    "triton_fetch",
    "triton_gumbel_noise",
    "triton_linear",
    "triton_norm",
    "triton_ragged_attention",
    "triton_rotate",
]
