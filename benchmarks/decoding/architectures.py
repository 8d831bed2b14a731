"""Milliseconds a token of further model classes, at the shapes of known models with random weights.

    python -m benchmarks.decoding.architectures mistral-7b
    python -m benchmarks.decoding.architectures qwen3-moe-30b-a3b qwen2-7b-lora --own-modules --steps 1 16
    python -m benchmarks.decoding.architectures phi-3-mini --scale tiny --layers 2 --device cpu

:class:`~saccade.inference.Autoregressive` with the default engine is measured beside transformers' ``generate``, and on
a GPU also beside its static cache with a compiled step. ``--own-modules`` adds the same decoder without fused kernels,
``--steps`` the time of verifying some tokens. All continue the same random prompt in turn; one round warms up. A method
of transformers that fails is left out, and the reason is printed. Several shapes are measured one after the other.

Without drafts the time of a token depends on the shape alone, so random weights are enough. They are made on the device
in its precision. No token ends a text. Sliding windows are off, but for Gemma's. The bound is the time to read, at the
measured copy bandwidth, the weights that one token needs (of a mixture of experts those of the experts that it uses)
and the keys and values of the text when half of the new tokens are there.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any
from unittest import mock

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)
from transformers.initialization import no_init_weights

from benchmarks.decoding.decode import (
    SEED,
    Facts,
    Method,
    Result,
    copy_bandwidth,
    measure,
    near_tie,
    only,
    ours,
    peer,
    report,
    rows_of,
    step_seconds,
)
from benchmarks.decoding.grow import weight_bytes
from benchmarks.rows import positive, replace, row
from saccade.inference import Autoregressive, TokenTree
from saccade.inference.engine import graphs
from saccade.inference.huggingface.models import cache_bytes

SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "gemma-3-4b": (
        Gemma3TextConfig,
        {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
            "sliding_window": 1024, "tie_word_embeddings": True,
        },
    ),
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
    "qwen2-7b-lora": (
        Qwen2Config,
        {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
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
"""Classes of configurations and the sizes of the text part of Gemma 3 4B, and of Mistral 7B (v0.3), Phi-3 mini (4k),
Qwen2 7B and Qwen3 30B-A3B."""
RANKS = {"qwen2-7b-lora": 16}
"""Shapes with an adapter (LoRA) on every matrix of every layer, and its rank."""
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
    values = NEUTRAL | sizes
    if scale == "tiny":
        values |= {key: value for key, value in TINY.items() if key in values}
    if layers is not None:
        values["num_hidden_layers"] = layers
    return kind(**values)


def random_model(
    config: PretrainedConfig, device: torch.device, dtype: torch.dtype, rank: int | None = None
) -> PreTrainedModel:
    """A model of random weights, made on the device in its precision; norms multiply by 1.

    Args:
        config: Its sizes.
        device: Where it is made.
        dtype: Precision of the weights.
        rank: Of an adapter on every matrix of every layer, which is more precise, as PEFT makes it; ``None`` for none.
    """
    with no_init_weights(), torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if rank is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear"))  # type: ignore[assignment]
    generator = torch.Generator(device=device).manual_seed(SEED)
    counts_from_1 = {
        id(part.weight) for part in model.modules() if "RMSNorm" in type(part).__name__ and hasattr(part, "eps")
    }
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0 if name.endswith("bias") or id(weight) in counts_from_1 else 1)
            else:
                weight.normal_(0, config.initializer_range, generator=generator)
    return model.eval()


def own_modules(method: Method) -> Method:
    """A method whose graphs run the model's own modules in place of fused kernels."""

    def run(ids: torch.Tensor) -> Result:
        with mock.patch.object(graphs, "why_not_fused", return_value="measured without"):
            return method(ids)

    return run


def contenders(model: PreTrainedModel, new: int, unfused: bool = False) -> dict[str, Method]:
    """What is measured, by name.

    Args:
        model: The model.
        new: New tokens.
        unfused: Whether the decoder is also measured without fused kernels.
    """
    found = {
        "saccade Autoregressive": ours(Autoregressive(), model, new),
        "transformers generate": peer(model, new),
    }
    if unfused:
        found["saccade Autoregressive, own modules"] = own_modules(ours(Autoregressive(), model, new))
    if next(model.parameters()).is_cuda:
        found["transformers static cache, compiled"] = peer(model, new, cache_implementation="static")
    return found


def main() -> None:
    """Measures the shapes, prints a table and one line of JSON for each, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES, metavar="SHAPE", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny: a trial on a processor")
    parser.add_argument("--layers", type=positive, help="number of layers; the shape's by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", nargs="+", help="measure the methods whose name contains one of these words")
    parser.add_argument("--own-modules", action="store_true", help="measure the decoder without fused kernels too")
    parser.add_argument("--steps", type=positive, nargs="+", default=[], help="numbers of tokens to time a step of")
    parser.add_argument("--prompt-length", type=positive, default=512)
    parser.add_argument("--new-tokens", type=positive, default=128)
    parser.add_argument("--runs", type=positive, default=3)
    chosen = parser.parse_args()
    for name in chosen.shapes:
        measure_shape(name, chosen)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_shape(name: str, chosen: argparse.Namespace) -> None:
    """Measures one shape, as the command line says."""
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    length, new = chosen.prompt_length, chosen.new_tokens
    model = random_model(config_of(name, chosen.scale, chosen.layers), device, dtype, RANKS.get(name))
    draw = torch.Generator().manual_seed(SEED)
    prompt = torch.randint(model.config.vocab_size, (1, length), generator=draw).to(device)
    methods = only(contenders(model, new, chosen.own_modules), chosen.only)
    found = measure(methods, [prompt], chosen.runs, peers_may_fail=True)
    size = "" if chosen.scale == "full" else f" ({chosen.scale})"
    facts = Facts(
        benchmark="architectures",
        case=(
            f"{name}{size} {model.config.num_hidden_layers} layers {model.num_parameters() / 1e9:.1f}B "
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
    trees = {f"step of {width} tokens": TokenTree.chain(width - 1) for width in chosen.steps}
    for step, seconds in step_seconds(model, prompt, "auto", chosen.runs, trees).items():
        made.append(row(facts.benchmark, facts.case, step, "ms_per_step", [1e3 * item for item in seconds], "ms"))
    replace(made)
    report(made, facts)


if __name__ == "__main__":
    main()
