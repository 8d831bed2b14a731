"""Where the Triton kernels of a test run: compiled on CUDA, else interpreted on the CPU (`tests/conftest.py`)."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

from saccade.inference.engine.kernels import experts  # noqa: E402
from saccade.inference.engine.kernels.decode_attention import triton_decode_attention  # noqa: E402
from saccade.inference.engine.kernels.experts import triton_experts, triton_experts_add  # noqa: E402
from saccade.inference.engine.kernels.linear import triton_add, triton_linear  # noqa: E402
from saccade.inference.engine.kernels.noise import triton_gumbel_noise  # noqa: E402
from saccade.inference.engine.kernels.norms import triton_norm  # noqa: E402
from saccade.inference.engine.kernels.rotation import triton_rotate  # noqa: E402

__all__ = [
    "DEVICE",
    "experts",
    "triton_add",
    "triton_decode_attention",
    "triton_experts",
    "triton_experts_add",
    "triton_gumbel_noise",
    "triton_linear",
    "triton_norm",
    "triton_rotate",
]
