"""Grows a trained small model to a larger shape: the same function, at the cost of the larger model.

A random model's acceptance rates mean nothing. A grown model accepts drafts as the small trained one does and is as
slow as a model of its shape, so speed can be measured without pretrained weights. This keeps the function the same, for
Llama, Qwen2, Qwen3 and the language parts of Qwen2.5-VL and LLaVA-OneVision:

- Width: the old channels come first and nothing writes into the added ones, which stay zero. They dilute RMSNorm's mean
  square, so norm weights are multiplied by sqrt(old width / new width) and epsilon by old width / new width.
- Heads: rotary pair i goes to pair i * (new / old head size), which turns at the same speed; old query heads stay in
  the group of their own KV head; queries are multiplied by sqrt(new / old head size) because attention divides by more.
  Qwen3 normalizes queries and keys by head: its weights take these factors, and its projections are scaled so that the
  one epsilon of the configuration is right for the heads too.
- Added heads, MLP units and layers compute with random weights, and their part of ``o_proj`` and ``down_proj`` is
  zero, so they add nothing. Old layer i becomes layer i * new // old: added layers are spread among the old ones.
- Vocabulary: one added channel holds a tiny constant, which only the final norm lets through and to which the head
  gives a hugely negative weight at the added tokens.
- Vision: the vision tower stays as it is, and its projector writes features where embeddings are: the old channels, the
  constant, zeros elsewhere. M-RoPE turns stretches of rotary pairs by time, height and width; the stretches are as many
  times longer as heads are wider, so that every old pair keeps its axis as well as its speed.

In float32 logits agree within about 1e-6 of the largest. In bfloat16 the factors round weights once more, which costs
as much as bfloat16 itself, and nothing where they are powers of two (4, 16, ... times the width and the head size).
Added layers change nothing, so skipping them costs no quality: measure layer skipping on trained deep models.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    LlavaOnevisionForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.initialization import no_init_weights

from saccade.inference.huggingface.models import language_part, text_config

VISUAL_MODELS = (Qwen2_5_VLForConditionalGeneration, LlavaOnevisionForConditionalGeneration)
MODELS = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, *VISUAL_MODELS)
ROPES = ("default", "linear", "llama3")
"""Rotary embeddings whose speeds depend on i / head size alone; the others also look at the size itself."""
DTYPES = (torch.bfloat16, torch.float32, torch.float64)
CONSTANT = 1e-5
"""The constant channel beside the smallest embedding: 1e-10 of its mean square."""
NEVER = -(2.0**48)
"""The head's weight on the constant: logits below -1e4 even where the residual is 1e6 times the smallest embedding."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal language model.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Units of each MLP.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Heads of the keys and values.
        head_dim: Size of a head.
        vocab_size: Rows of the embedding.
        tied: Whether the output head is the embedding.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tied: bool = False


SHAPES: dict[str, Shape] = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 64, 151936, tied=True),  # Qwen2.5
    "1.7B": Shape(2048, 6144, 28, 16, 8, 128, 151936, tied=True),  # Qwen3
    "3B": Shape(2048, 11008, 36, 16, 2, 128, 151936, tied=True),  # Qwen2.5
    "7B": Shape(3584, 18944, 28, 28, 4, 128, 152064),  # Qwen2.5
    "14B": Shape(5120, 13824, 48, 40, 8, 128, 152064),  # Qwen2.5
    "32B": Shape(5120, 27648, 64, 40, 8, 128, 152064),  # Qwen2.5
    "32B-48-heads": Shape(5120, 27648, 64, 48, 8, 128, 152064),  # for models with 6 query heads for each KV head
    "70B": Shape(8192, 28672, 80, 64, 8, 128, 128256),  # Llama 3
}


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a model; of a vision-language model that of its language part."""
    config = text_config(model)
    return Shape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        tied=_is_tied(model),
    )


def grow(
    model: PreTrainedModel,
    shape: Shape,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> PreTrainedModel:
    """A model of a larger shape whose logits are the given model's; the added tokens' are below -1e4.

    The result is made on its device, layer by layer from the given model. Random weights have the standard deviation
    of the configuration's ``initializer_range``.

    Args:
        model: A trained model of a class in ``MODELS``; it is not changed.
        shape: What it grows to, of a vision-language model the language part; no size may be smaller than the model's.
            A tied model may become an untied one.
        dtype: Of the result: bfloat16, float32 or float64.
        device: Of the result.
        seed: Of the random weights.

    Returns:
        A model of the same class in evaluation mode. Token ids keep their meaning.

    Raises:
        ValueError: The model is of another class or has another kind of rotary embedding, or it does not fit into the
            shape; the message says what would.
    """
    if type(model) not in MODELS:
        names = ", ".join(kind.__name__ for kind in MODELS)
        raise ValueError(f"model must be one of {names}, got {type(model).__name__}: take one of these.")
    old = shape_of(model)
    _check(model, old, shape, dtype)
    config = _grown_config(model.config, old, shape)
    attention = model.config._attn_implementation
    source = _decoder(model)
    with no_init_weights(), torch.device(device):
        grown: PreTrainedModel = type(model)._from_config(config, dtype=dtype, attn_implementation=attention)
    grown.tie_weights()
    grown.generation_config = copy.deepcopy(model.generation_config)
    growth = _Growth(old, shape, grown.lm_head.weight.device)
    generator = torch.Generator(device=growth.device).manual_seed(seed)
    target = _decoder(grown)
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.normal_(0, text_config(grown).initializer_range, generator=generator)
        for index, layer in enumerate(target.layers):
            growth.fill_layer(layer, source.layers[growth.layers[index]] if index in growth.layers else None)
        growth.fill_ends(grown, model)
        # the model's own speeds: `model.to(torch.bfloat16)` may have rounded them
        target.rotary_emb.inv_freq[:: growth.head_factor] = source.rotary_emb.inv_freq.to(growth.device)
        if isinstance(model, VISUAL_MODELS):
            growth.fill_vision(grown, model)
    return grown.eval()


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a forward of one token reads.

    All parameters but the input embedding, of which one row is read; all of that too where it is also the output head.
    Of a vision-language model the language part and the head, because the video has been read before. Of a mixture of
    experts those of the experts that one token uses.
    """
    unread = None if _is_tied(model) else model.get_input_embeddings().weight
    named = [item for part in (language_part(model), model.lm_head) for item in part.named_parameters()]
    read = {id(weight): (name, weight) for name, weight in named if weight is not unread}
    used, experts = (getattr(text_config(model), name, 1) for name in ("num_experts_per_tok", "num_experts"))
    in_experts = sum(weight.nbytes for name, weight in read.values() if ".experts." in name)
    return sum(weight.nbytes for _, weight in read.values()) - in_experts + in_experts * used // experts


class _Growth:
    """The places of a small model's parts in a large one.

    Args:
        old: Shape of the small one.
        new: Shape of the large one.
        device: Of the large one.

    Attributes:
        layers: New index of each kept layer to its old one.
        head_factor: New size of a head over the old.
        constant: The channel of the residual stream that holds the constant; None while the vocabulary does not grow.
    """

    def __init__(self, old: Shape, new: Shape, device: torch.device) -> None:
        self.old, self.new, self.device = old, new, device
        self.layers = {place: index for index, place in enumerate(_layer_places(old, new))}
        self.head_factor = new.head_dim // old.head_dim
        self.constant = old.hidden_size if new.vocab_size > old.vocab_size else None
        self.norm_factor = math.sqrt(old.hidden_size / new.hidden_size)
        self.channels = torch.arange(old.hidden_size, device=device)
        self.units = torch.arange(old.intermediate_size, device=device)

        keys = torch.arange(old.num_key_value_heads, device=device)
        group, new_group = (shape.num_attention_heads // shape.num_key_value_heads for shape in (old, new))
        queries = (keys[:, None] * new_group + torch.arange(group, device=device)).flatten()
        pairs = torch.arange(old.head_dim // 2, device=device) * self.head_factor
        self.positions = torch.cat((pairs, pairs + new.head_dim // 2))
        kept = torch.zeros(new.head_dim, dtype=torch.bool, device=device)
        kept[self.positions] = True
        self.query_rows, self.added_query_rows = self._rows(queries, self.positions), self._rows(queries, ~kept)
        self.key_rows, self.added_key_rows = self._rows(keys, self.positions), self._rows(keys, ~kept)

    def _rows(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rows of a projection: positions (numbers or a mask) of heads, head by head."""
        numbers = torch.arange(self.new.head_dim, device=self.device)[positions]
        return (heads[:, None] * self.new.head_dim + numbers).flatten()

    def fill_layer(self, layer: Any, source: Any | None) -> None:
        """Writes an old layer into a random one; without one, the layer is made to add nothing."""
        attention, mlp = layer.self_attn, layer.mlp
        for output in (attention.o_proj, mlp.down_proj):
            _zero(output)
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = getattr(layer, name).weight
            norm.fill_(self.norm_factor)
            if source is not None:
                norm[self.channels] = _values(getattr(source, name).weight, norm, self.norm_factor)
            if self.constant is not None:
                norm[self.constant] = 0
        for name in ("q_norm", "k_norm"):
            if hasattr(attention, name):
                getattr(attention, name).weight.fill_(1)
        if source is None:
            return
        self._fill_attention(attention, source.self_attn)
        for name in ("gate_proj", "up_proj"):
            _place(getattr(mlp, name), getattr(source.mlp, name), self.units, self.channels)
        _place(mlp.down_proj, source.mlp.down_proj, self.channels, self.units)

    def _fill_attention(self, attention: Any, source: Any) -> None:
        """Writes the old heads; added positions meet zeros in the queries or, for values, in the output projection."""
        width = self.old.hidden_size
        query_factor, key_factor = math.sqrt(self.head_factor), 1.0
        _zero(attention.q_proj, self.added_query_rows, width)
        if hasattr(attention, "q_norm"):
            # zeros dilute the heads' mean square; epsilon has changed by the widths' ratio, so the square must too
            query_factor = key_factor = self.norm_factor * math.sqrt(self.head_factor)
            _zero(attention.k_proj, self.added_key_rows, width)
            norms = attention.q_norm.weight, attention.k_norm.weight
            norms[0][self.positions] = _values(source.q_norm.weight, norms[0])
            norms[1][self.positions] = _values(source.k_norm.weight, norms[1], 1 / math.sqrt(self.head_factor))
        _place(attention.q_proj, source.q_proj, self.query_rows, self.channels, query_factor)
        _place(attention.k_proj, source.k_proj, self.key_rows, self.channels, key_factor)
        _place(attention.v_proj, source.v_proj, self.key_rows, self.channels)
        _place(attention.o_proj, source.o_proj, self.channels, self.query_rows)

    def fill_ends(self, grown: PreTrainedModel, model: PreTrainedModel) -> None:
        """Writes the embedding, the final norm and the head."""
        width, tokens = self.old.hidden_size, self.old.vocab_size
        target, source = _decoder(grown), _decoder(model)
        embedding, norm, head = target.embed_tokens.weight, target.norm.weight, grown.lm_head.weight
        norm.fill_(self.norm_factor)
        norm[:width] = _values(source.norm.weight, norm, self.norm_factor)
        embedding[:, width:] = 0
        embedding[:tokens, :width] = _values(source.embed_tokens.weight, embedding)
        if not self.new.tied:
            head[:tokens, :width] = _values(model.lm_head.weight, head)
        if self.constant is not None:
            lengths = source.embed_tokens.weight.float().norm(dim=-1)
            norm[self.constant] = 1
            head[:tokens, self.constant] = 0
            embedding[:, self.constant] = 2.0 ** math.floor(math.log2(CONSTANT * lengths[lengths > 0].min().item()))
            # where the head is the embedding, the old tokens share a shift that is far below rounding
            head[tokens:, self.constant] = NEVER

    def fill_vision(self, grown: Any, model: Any) -> None:
        """Copies the vision tower, and makes its features look like embeddings of the old tokens."""
        language: Any = language_part(grown)
        own = {id(item) for part in (language, grown.lm_head) for item in (*part.parameters(), *part.buffers())}
        old: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, item in (*grown.named_parameters(), *grown.named_buffers()):
            if id(item) not in own and item.shape == old[name].shape:
                item.copy_(_values(old[name], item) if item.is_floating_point() else old[name])
        last, hidden = _projector(grown), _projector(model)
        inputs = torch.arange(hidden.in_features, device=self.device)
        _zero(last)
        _place(last, hidden, self.channels, inputs)
        written = [] if last.bias is None else [last.bias]
        if isinstance(model, LlavaOnevisionForConditionalGeneration):
            # added units of the first projection are random, and the second does not read them
            first, source = grown.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_1
            _place(first, source, self.channels, torch.arange(source.in_features, device=self.device))
            newline, source = grown.model.image_newline, model.model.image_newline
            newline.zero_()
            newline[self.channels] = _values(source, newline)
            written.append(newline)
        if self.constant is not None:
            constant = language.embed_tokens.weight[0, self.constant]
            for vector in written:
                vector[self.constant] = constant


def _check(model: PreTrainedModel, old: Shape, new: Shape, dtype: torch.dtype) -> None:
    """Raises for models and shapes that cannot be grown."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be bfloat16, float32 or float64, got {dtype}: take one of these.")
    parameters = text_config(model).rope_parameters or {}
    rope = parameters.get("rope_type", "default")
    if isinstance(model, Qwen2_5_VLForConditionalGeneration):
        # `mrope` is the older name of the default with sections
        rope = "default" if rope == "mrope" else rope
    if rope not in ROPES:
        raise ValueError(
            f"model must have rotary embeddings of type {', '.join(ROPES)}, got {rope}: take another model."
        )
    for name in (field.name for field in fields(Shape) if field.name != "tied"):
        if getattr(new, name) < getattr(old, name):
            raise ValueError(
                f"{name} must be at least the model's {getattr(old, name)}, got {getattr(new, name)}: "
                "take a larger shape."
            )
    if new.head_dim % old.head_dim:
        raise ValueError(
            f"head_dim must be a multiple of the model's {old.head_dim}, got {new.head_dim}: change the shape."
        )
    heads, keys = new.num_attention_heads, new.num_key_value_heads
    if heads % keys:
        raise ValueError(
            f"num_attention_heads must be a multiple of num_key_value_heads ({keys}), got {heads}: change one of them."
        )
    if heads // keys < (least := old.num_attention_heads // old.num_key_value_heads):
        raise ValueError(
            f"num_attention_heads must be at least the model's {least} for each of the {keys} key-value heads, "
            f"got {heads}: take at least {least * keys}."
        )
    if isinstance(model, LlamaForCausalLM) and new.hidden_size % heads:
        raise ValueError(f"hidden_size must be a multiple of the {heads} heads, got {new.hidden_size}: Llama needs it.")
    if isinstance(model, Qwen2_5_VLForConditionalGeneration) and new.hidden_size != heads * new.head_dim:
        raise ValueError(
            f"hidden_size must be Qwen2.5-VL's {heads} heads of {new.head_dim}, {heads * new.head_dim}, "
            f"got {new.hidden_size}: change the shape."
        )
    if new.tied and not old.tied:
        raise ValueError("tied must be False for a model whose head is not its embedding, got True: take False.")
    if new.vocab_size > old.vocab_size and new.hidden_size == old.hidden_size:
        raise ValueError(
            f"hidden_size must be above the model's {old.hidden_size} where the vocabulary grows, "
            f"got {new.hidden_size}: one more channel keeps the added tokens' logits low."
        )


def _grown_config(config: PretrainedConfig, old: Shape, new: Shape) -> PretrainedConfig:
    """The configuration of the new shape; kept layers keep their kind of attention, added ones have full attention."""
    values = config.to_dict()
    text = config.get_text_config(decoder=True)
    grown = values if text is config else values["text_config"]
    grown |= {field.name: getattr(new, field.name) for field in fields(Shape) if field.name != "tied"}
    grown["rms_norm_eps"] = text.rms_norm_eps * old.hidden_size / new.hidden_size
    if kinds := getattr(text, "layer_types", None):
        grown["layer_types"] = ["full_attention"] * new.num_hidden_layers
        for place, kind in zip(_layer_places(old, new), kinds, strict=True):
            grown["layer_types"][place] = kind
    if sections := (text.rope_parameters or {}).get("mrope_section"):
        longer = [size * (new.head_dim // old.head_dim) for size in sections]
        grown["rope_parameters"] = dict(text.rope_parameters) | {"mrope_section": longer}
    # a vision-language model's own flag counts; its language part must not say otherwise
    values["tie_word_embeddings"] = grown["tie_word_embeddings"] = new.tied
    if "out_hidden_size" in values.get("vision_config", {}):
        values["vision_config"]["out_hidden_size"] = new.hidden_size
    return type(config).from_dict(values)


def _decoder(model: PreTrainedModel) -> Any:
    """Embedding, layers, final norm and rotary embedding of a model."""
    part = language_part(model)
    return part.get_submodule("model") if part is model else part


def _projector(model: Any) -> nn.Linear:
    """The last projection of a vision-language model's features."""
    found: nn.Linear
    if isinstance(model, Qwen2_5_VLForConditionalGeneration):
        found = model.model.visual.merger.mlp[2]
    else:
        found = model.model.multi_modal_projector.linear_2
    return found


def _is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _layer_places(old: Shape, new: Shape) -> list[int]:
    return [index * new.num_hidden_layers // old.num_hidden_layers for index in range(old.num_hidden_layers)]


def _values(source: Tensor, target: Tensor, factor: float = 1.0) -> Tensor:
    """A small weight times a factor, rounded once, on the target's device."""
    exact = source.to(target.device, torch.promote_types(source.dtype, torch.float32))
    return (exact * factor).to(target.dtype)


def _place(target: nn.Linear, source: nn.Linear, rows: Tensor, columns: Tensor, factor: float = 1.0) -> None:
    """Writes a small projection, times a factor, at rows and columns of a large one; its bias likewise."""
    target.weight[rows[:, None], columns] = _values(source.weight, target.weight, factor)
    if target.bias is not None:
        target.bias[rows] = _values(source.bias, target.bias, factor)


def _zero(target: nn.Linear, rows: Tensor | None = None, width: int | None = None) -> None:
    """Makes rows of a projection zero in the first columns, and their bias; without rows and width, all of it."""
    chosen = slice(None) if rows is None else rows
    target.weight[chosen, :width] = 0
    if target.bias is not None:
        target.bias[chosen] = 0
