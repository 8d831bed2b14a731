"""Milliseconds a token of model classes without fused kernels, at the shapes of known models with random weights.

    python -m benchmarks.decoding.architectures mistral-7b
    python -m benchmarks.decoding.architectures qwen3-moe-30b-a3b --only saccade "transformers generate"
    python -m benchmarks.decoding.architectures phi-3-mini --scale tiny --layers 2 --device cpu

:class:`~saccade.inference.Autoregressive` with the default engine is measured beside transformers' ``generate``, and on
a GPU also beside its static cache with a compiled step. They continue the same random prompt in turn; one round warms
up. A method of transformers that fails is left out, and the reason is printed.

Without drafts the time of a token depends on the shape alone, so random weights are enough. They are made on the device
in its precision. No token ends a text. Sliding windows are off. The bound is the time to read, at the measured copy
bandwidth, the weights that one token needs (of a mixture of experts those of the experts that it uses) and the keys and
values of the text when half of the new tokens are there.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)
from transformers.initialization import no_init_weights

from benchmarks.decoding.decode import (
    SEED,
    Facts,
    Method,
    copy_bandwidth,
    measure,
    near_tie,
    only,
    ours,
    peer,
    report,
    rows_of,
)
from benchmarks.decoding.grow import weight_bytes
from benchmarks.rows import positive, replace
from saccade.inference import Autoregressive
from saccade.inference.huggingface.models import cache_bytes

SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "mistral-7b": (
        MistralConfig,
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768, "max_position_embeddings": 32768,
        },
    ),
    "phi-3-mini": (
        Phi3Config,
        {
            "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
        },
    ),
    "qwen3-moe-30b-a3b": (
        Qwen3MoeConfig,
        {
            "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
            "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
        },
    ),
}  # fmt: skip
"""Classes of configurations and the sizes of Mistral 7B (v0.3), Phi-3 mini (4k) and Qwen3 30B-A3B."""
NEUTRAL: dict[str, Any] = {
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 256, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
}  # fmt: skip


def config_of(name: str, scale: str = "full", layers: int | None = None) -> PretrainedConfig:
    """The configuration of a named shape.

    Args:
        name: In ``SHAPES``.
        scale: ``full``, or ``tiny`` for widths that a processor computes at once.
        layers: Number of layers; ``None`` takes the shape's.
    """
    kind, sizes = SHAPES[name]
    values = sizes | NEUTRAL
    if scale == "tiny":
        values |= {key: value for key, value in TINY.items() if key in values}
    if layers is not None:
        values["num_hidden_layers"] = layers
    return kind(**values)


def random_model(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model of random weights, made on the device in its precision; norms multiply by 1."""
    with no_init_weights(), torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device=device).manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.fill_(1)
            else:
                weight.normal_(0, config.initializer_range, generator=generator)
    return model.eval()


def contenders(model: PreTrainedModel, new: int) -> dict[str, Method]:
    """What is measured, by name."""
    found = {
        "saccade Autoregressive": ours(Autoregressive(), model, new),
        "transformers generate": peer(model, new),
    }
    if next(model.parameters()).is_cuda:
        found["transformers static cache, compiled"] = peer(model, new, cache_implementation="static")
    return found


def main() -> None:
    """Measures one shape, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, metavar="SHAPE", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: a trial on a processor")
    parser.add_argument("--layers", type=positive, help="number of layers; the shape's by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", nargs="+", help="measure the methods whose name contains one of these words")
    parser.add_argument("--prompt-length", type=positive, default=512)
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--runs", type=positive, default=3)
    chosen = parser.parse_args()
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    length, new = chosen.prompt_length, chosen.new_tokens
    model = random_model(config_of(chosen.shape, chosen.scale, chosen.layers), device, dtype)
    draw = torch.Generator().manual_seed(SEED)
    prompt = torch.randint(model.config.vocab_size, (1, length), generator=draw).to(device)
    found = measure(only(contenders(model, new), chosen.only), [prompt], chosen.runs, peers_may_fail=True)
    size = "" if chosen.scale == "full" else f" ({chosen.scale})"
    facts = Facts(
        benchmark="architectures",
        case=(
            f"{chosen.shape}{size} {model.config.num_hidden_layers} layers {model.num_parameters() / 1e9:.1f}B "
            f"{chosen.dtype}, random weights, no token ends a text, batch 1, random prompt of {length}, "
            f"{new} new tokens, greedy"
        ),
        bytes_per_second=copy_bandwidth(device),
        needed=weight_bytes(model) + cache_bytes(model, 1, length + new // 2),
        greedy=True,
        grown=False,
        distinct_4_real=None,
    )
    made = rows_of(facts, found, near_tie(model, [prompt]))
    replace(made)
    report(made, facts)


if __name__ == "__main__":
    main()
