"""Which classes of transformers the text decoders decode exactly, and why the others are refused.

    python -m benchmarks.decoding.classes
    python -m benchmarks.decoding.classes mistral gemma2

Of every class a tiny model is made from its configuration, with random weights in float64. Windows and chunks are 8
tokens, a batch of three padded prompts is longer than that, and one prompt repeats itself. A decoder is *equal* where
it continues all prompts as ``model.generate`` does, token for token, called by import and as ``custom_generate``.
Otherwise the row holds the line with which it refuses the class. What differs silently ends the script with an error.

The draft of ``AssistedDecoding`` is the model's first layer.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.rows import replace, row
from saccade.inference import AssistedDecoding, Autoregressive, Decoder, PromptLookup, SelfSpeculative
from saccade.inference.huggingface.models import layer_kinds, text_config

SEED = 0
NEW = 24
MOST = 4_000_000
SPAN = 8
"""Tokens of a window or a chunk."""
SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": 0, "initializer_range": 0.3, "tie_word_embeddings": False, "sliding_window": SPAN,
    "use_sliding_window": True, "max_window_layers": 1, "attention_chunk_size": SPAN, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
"""What is set in every configuration that has a setting of this name."""
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
"""The same for classes with latent attention."""
IDS = {"bos_token_id": 1, "eos_token_id": 2}
SHARED = {
    "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
    "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8,
}  # fmt: skip
SHORT = {"layer_types": ["conv", "full_attention"]}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = LINEAR | {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
STATES = {
    "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_ssm": 64,
    "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 16, "ssm_state_size": 8, "n_groups": 2,
    "chunk_size": 16, "state_size": 8, "num_heads": 4,
}  # fmt: skip
"""The same for classes with state spaces."""
OTHERS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "ctrl": {"dff": 48},
    "cwm": IDS,
    "dots1": {"n_shared_experts": 1},
    "falcon": {"head_dim": ...},
    "gemma3n_text": SHARED | {"laurel_rank": 4},
    "gemma4_text": SHARED | {"enable_moe_block": True, "top_k_experts": 2},
    "gemma4_unified_text": SHARED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_hidden_layers": ...},
    "granitemoehybrid": LINEAR,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": LINEAR | {"linear_head_dim": 8, "linear_num_heads": 2},
    "lfm2": SHORT,
    "lfm2_moe": SHORT,
    "lfm3": SHORT,
    "mamba2": {"num_heads": 8},
    "modernbert-decoder": IDS,
    "olmo_hybrid": DELTA | {"num_hidden_layers": 3, "layer_types": [*LINEAR["layer_types"], "linear_attention"]},
    "qwen3_5_moe_text": DELTA,
    "qwen3_5_text": DELTA,
    "qwen3_next": DELTA,
    "qwen4_exp_text": LINEAR | {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Settings of single classes; ``...`` leaves the class's own."""

FEWEST = {"olmo_hybrid": 2}
"""Layers of a draft, where a class does not work with one."""
STATE_SPACES = {"bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h"}
"""Types whose state spaces have heads."""
TYPES = [
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bailing_hybrid", "bamba", "beam", "biogpt", "bitnet",
    "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "cpmant", "ctrl", "cwm", "deepseek_v2", "deepseek_v3",
    "deepseek_v32", "deepseek_v4", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma3n_text",
    "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "helium", "hrm_text",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hy_v4", "hyperclovax", "inkling2_text", "inkling_text", "jais2",
    "jamba", "jetmoe", "kimi_linear",
    "kolibri1", "laguna", "lfm2", "lfm2_moe", "lfm3", "llama", "llama4_text", "mamba", "mamba2", "mellum",
    "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid",
    "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text", "recurrent_gemma", "rwkv",
    "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "xlstm", "youtu", "zaya",
]  # fmt: skip
"""The types of decoder-only language models of transformers that are compared."""


def config_of(name: str, layers: int | None = None) -> PretrainedConfig:
    """A tiny configuration of a type of model.

    Args:
        name: As in a checkpoint's ``model_type``.
        layers: Number of layers; ``None`` takes that of :data:`SIZES`.
    """
    kind = CONFIG_MAPPING[name]
    usual = kind()
    known = {*usual.to_dict(), *getattr(kind, "attribute_map", {})}
    values = {key: value for key, value in SIZES.items() if key in known}
    if "kv_lora_rank" in known:
        values |= {key: value for key, value in LATENT.items() if key in known}
    if name in STATE_SPACES:
        values |= {key: value for key, value in STATES.items() if key in known}
    kinds = set(getattr(usual, "layer_types", None) or [])
    if kinds and "sliding_window" in known and kinds <= {"full_attention", "sliding_attention"}:
        values["layer_types"] = ["sliding_attention", "full_attention"]
    values |= OTHERS.get(name, {})
    values = {key: value for key, value in values.items() if value is not ...}
    if layers is not None:
        values["num_hidden_layers"] = layers
        if values.get("num_kv_shared_layers"):
            values["num_kv_shared_layers"] = 0
        if "layer_types" in values:
            values["layer_types"] = values["layer_types"][:layers]
    return kind(**values)


def tiny_model(name: str, layers: int | None = None) -> PreTrainedModel:
    """A model of a type with random weights in float64; experts are computed one after the other, as float64 needs."""
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config_of(name, layers)).num_parameters()
    if size > MOST:
        raise ValueError(f"a {name} must have at most {MOST} weights, got {size}: set its other sizes in OTHERS.")
    torch.manual_seed(SEED)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(name, layers), experts_implementation="eager")
    for path, weight in model.named_parameters():
        if path.endswith("sinks"):
            torch.nn.init.normal_(weight)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.double().eval()


def first_layer(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """A draft: the first layer of a model, with its embedding, norm and head."""
    draft = tiny_model(name, FEWEST.get(name, 1))
    shapes = {path: weight.shape for path, weight in draft.state_dict().items()}
    same = {path: weight for path, weight in model.state_dict().items() if shapes.get(path) == weight.shape}
    draft.load_state_dict(same, strict=False)
    return draft


def prompts() -> dict[str, Tensor]:
    """Three prompts of 20, 6 and 14 tokens, padded on the left; the first repeats itself."""
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(1, SIZES["vocab_size"], (3, 20), generator=draw)
    ids[0, 10:] = ids[0, :10]
    mask = torch.ones_like(ids)
    mask[1, :14] = mask[2, :6] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def reference(model: PreTrainedModel) -> list[list[int]]:
    """What ``model.generate`` adds to each prompt.

    The eager attention of some classes is not a number in padded rows of float64 (its masks are too small for the
    float32 of its softmax): their prompts are decoded one by one.
    """
    batch = prompts()
    rows = [{key: value[row : row + 1, batch["attention_mask"][row].argmax() :] for key, value in batch.items()}
            for row in range(3)]  # fmt: skip
    for given in ([batch], rows):
        made = [
            model.generate(
                **each, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            for each in given
        ]
        if all(bool(torch.stack(out.logits).isfinite().any(-1).all()) for out in made):
            break
    return [row for out in made for row in out.sequences[:, -NEW:].tolist()]


def decoders(name: str, model: PreTrainedModel) -> dict[str, Callable[[], Decoder]]:
    """Makes the text decoders; their drafts have a fixed length, so that tokens are drafted in every round."""
    return {
        "Autoregressive": Autoregressive,
        "PromptLookup": lambda: PromptLookup(control="fixed"),
        "AssistedDecoding": lambda: AssistedDecoding(
            first_layer(name, model), draft_length=4, confidence_threshold=0.0, control="fixed"
        ),
        "SelfSpeculative": lambda: SelfSpeculative(
            {"attention": [1], "mlp": [0]}, draft_length=4, gamma=0.0, adaptive=False, control="fixed"
        ),
    }


def kind_of(model: PreTrainedModel) -> str:
    """What is particular to a class, in words."""
    config = text_config(model)
    kinds = {"sliding_attention": "window", "chunked_attention": "chunks", "full_attention": ""}
    found = [kinds.get(kind, kind.removesuffix("_attention")) for kind in dict.fromkeys(layer_kinds(model))]
    found += ["sinks"] if any(path.endswith("sinks") for path, _ in model.named_parameters()) else []
    found += ["capped scores"] if getattr(config, "attn_logit_softcapping", None) else []
    found += ["capped logits"] if getattr(config, "final_logit_softcapping", None) else []
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    found += ["mixture"] if any(getattr(config, name, None) for name in experts) else []
    return ", ".join(word for word in found if word)


def compared(
    model: PreTrainedModel,
    batch: dict[str, Tensor],
    made: dict[str, Callable[[], Decoder]],
    right: Callable[[], list[list[int]]],
    handed: dict[str, Tensor] | None = None,
) -> dict[str, str]:
    """``equal``, or the line of the refusal, for each decoder.

    Args:
        model: The model.
        batch: What decoders are given.
        made: Makes the decoders; what the first of them refuses, they all refuse.
        right: What ``model.generate`` adds to each prompt; called once, if a decoder decodes.
        handed: What ``model.generate`` is given beside it.

    Raises:
        ArithmeticError: A decoder writes another text than ``model.generate``.
    """
    found: dict[str, str] = {}
    texts = None
    for name, make in made.items():
        try:
            decoder = make()
            mine = decoder.generate(model, **batch, max_new_tokens=NEW)
        except ValueError as error:
            found[name] = str(error)
            if len(found) == 1:  # a draft need not exist
                return dict.fromkeys(made, str(error))
            continue
        texts = texts or right()
        given = batch | (handed or {})
        other = model.generate(**given, max_new_tokens=NEW, do_sample=False, custom_generate=decoder)
        if mine.tokens != texts or not torch.equal(mine.sequences, other):
            raise ArithmeticError(f"{name} writes another text than model.generate with {type(model).__name__}")
        found[name] = "equal"
    return found


def outcomes(name: str) -> dict[str, str]:
    """``equal``, or the line of the refusal, for each decoder.

    Raises:
        ArithmeticError: A decoder writes another text than ``model.generate``.
    """
    model = tiny_model(name)
    return compared(model, prompts(), decoders(name, model), lambda: reference(model))


def measured(name: str) -> dict[str, Any]:
    """The row of one type of model."""
    model = tiny_model(name)
    found = outcomes(name)
    equal = sum(value == "equal" for value in found.values())
    facts = {"class": type(model).__name__, "kind": kind_of(model), "outcomes": found}
    return row("classes", name, "text decoders", "equal", [equal], "decoders", seed=SEED, extra=facts)


def compare_types(description: str | None, types: Iterable[str], measured: Callable[[str], dict[str, Any]]) -> None:
    """Compares all classes, or those named on the command line, and writes their rows.

    Args:
        description: Of the command, for its help.
        types: All types of models.
        measured: The row of one of them.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types; all of them by default")
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    for name in chosen.types or types:
        made = measured(name)
        print(name, made["kind"], *dict.fromkeys(made["outcomes"].values()), sep="; ", flush=True)
        replace([made])


def main() -> None:
    """Compares all classes, or those named, and writes their rows."""
    compare_types(__doc__, TYPES, measured)


if __name__ == "__main__":
    main()
