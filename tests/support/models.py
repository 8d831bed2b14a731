"""Tiny models with random weights: three architectures, planted near-ties, planted constants, toys."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ARCHITECTURES: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
GAP = 1e-9


def tiny_model(
    architecture: str = "llama",
    *,
    layers: int = 3,
    vocabulary: int = 40,
    hidden: int = 32,
    context: int = 256,
    tied: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    near_ties: bool = False,
    sharpness: float = 1.0,
    residual: float = 1.0,
    **settings: object,
) -> PreTrainedModel:
    """A random model with grouped queries, in evaluation mode, that knows no EOS.

    Args:
        architecture: llama, qwen2 or qwen3.
        layers: Decoder layers.
        vocabulary: Number of token ids.
        hidden: Width.
        context: Positions.
        tied: Whether the output head is the embedding.
        dtype: Precision of the weights.
        seed: Of the weights.
        near_ties: Whether every token has a twin whose logit differs by about 1e-9.
        sharpness: Factor on the logits.
        residual: Factor on what every sub-layer adds; small values make skipped sub-layers matter little.
        settings: Further entries of the configuration.
    """
    config_type, model_type = ARCHITECTURES[architecture]
    config = config_type(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = model_type(config).to(torch.float64).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= residual
            layer.mlp.down_proj.weight *= residual
        model.model.norm.weight *= sharpness
        if near_ties:
            plant_near_ties(model)
    torch.random.set_rng_state(state)
    return model.to(dtype)


def plant_near_ties(model: PreTrainedModel, gap: float = GAP) -> None:
    """Gives every token a twin whose logit is about ``gap`` away at every position.

    Channel 0 of the residual stream is made a positive constant, which the twins' rows of the head weigh differently.
    The logits are scaled down to about 1e-3, so that float32, in which ``model.generate`` compares them, can still
    tell twins apart.
    """
    core, head = model.model, model.lm_head.weight
    signs = torch.randint(0, 2, (head.shape[0] // 2,)).double() * 2 - 1
    for layer in core.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    core.embed_tokens.weight[:, 0] = core.embed_tokens.weight[:, 1:].norm(dim=-1).mean()
    core.norm.weight *= 1e-3
    head[:, 0] = core.embed_tokens.weight[:, 0].mean() if model.config.tie_word_embeddings else 0
    head[1::2] = head[0::2]
    head[1::2, 0] += signs * gap * 1.2e3


def copy_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A draft: the first layers of a model, with its embedding, norm and head."""
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    draft = type(model)(config).to(model.dtype).eval()
    draft.load_state_dict(
        {name: weight for name, weight in model.state_dict().items() if name in dict(draft.state_dict())}
    )
    return draft


def plant_constant(model: PreTrainedModel, token: int) -> None:
    """Makes a model answer ``token`` whatever it is asked."""
    with torch.no_grad():
        model.model.norm.weight.zero_()
        bias = torch.zeros(model.config.vocab_size, dtype=model.dtype)
        bias[token] = 1.0
        model.lm_head.bias = nn.Parameter(bias)


def prompts(model: PreTrainedModel, lengths: list[int], seed: int = 0, side: str = "left") -> dict[str, torch.Tensor]:
    """Random prompts of the given lengths as ``input_ids`` and ``attention_mask``, padded on ``side``."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    tokens = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        columns = slice(longest - length, None) if side == "left" else slice(0, length)
        tokens[row, columns] = torch.randint(1, model.config.vocab_size, (length,), generator=generator)
        mask[row, columns] = 1
    return {"input_ids": tokens, "attention_mask": mask}
