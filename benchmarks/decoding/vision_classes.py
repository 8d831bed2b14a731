"""Which vision-language classes of transformers are decoded exactly with images, and why the others are refused.

    python -m benchmarks.decoding.vision_classes
    python -m benchmarks.decoding.vision_classes qwen3_vl llava

As :mod:`benchmarks.decoding.classes`, with tiny vision-language models and a batch of three padded prompts, each with
an image. SpecVLM keeps half of the image's tokens for its draft, the model itself; where layers have a window, it
chooses them without looking at the attention, which is not recorded there.

The draft of ``AssistedDecoding`` is the model's first layer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.decoding import classes
from benchmarks.decoding.classes import MOST, NEW, SEED, SPAN, compare_types, compared, kind_of
from benchmarks.rows import row
from saccade.inference import Decoder, SpecVLM
from saccade.inference.huggingface.models import is_windowed, text_config

IMAGE, VIDEO, START, END, AUDIO = 5, 6, 7, 8, 4
TEXT: dict[str, Any] = classes.SIZES | {"sliding_window": None, "use_sliding_window": False}
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 2,
    "num_heads": 2, "image_size": 16, "patch_size": 4, "out_hidden_size": 32, "projection_dim": 32, "window_size": 16,
    "fullatt_block_indexes": [1], "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    "vision_use_head": False, "initializer_range": 0.3,
}  # fmt: skip
TOP: dict[str, Any] = {
    "image_token_id": IMAGE, "image_token_index": IMAGE, "video_token_id": VIDEO, "video_token_index": VIDEO,
    "vision_start_token_id": START, "vision_end_token_id": END, "pad_token_id": 0, "projection_dim": 32,
    "tie_word_embeddings": False,
}  # fmt: skip
"""What is set in every configuration with such a setting: of the text, of the vision tower, and above both."""
WINDOWED = {"sliding_window": SPAN, "layer_types": ["sliding_attention", "full_attention"]}
AUDIO_TOWER = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16,
    "output_dim": 32, "n_window": 4, "max_source_positions": 16, "downsample_hidden_size": 16,
}  # fmt: skip
OMNI = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_token_id": AUDIO,
    "audio_config": AUDIO_TOWER,
}
TILES = {"vision_feature_layer": -1, "image_grid_pinpoints": [[16, 16], [16, 32], [32, 16]]}
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "aria": {"top": {"projector_patch_to_query_dict": {16: 4}}},
    "aya_vision": {"text": WINDOWED},
    "cohere2_vision": {"text": WINDOWED, "top": {"alignment_intermediate_size": 64}},
    "gemma3": {"text": WINDOWED, "top": {"mm_tokens_per_image": 4}},
    "glm4v_moe": {"text": {"head_dim": 16}},
    "got_ocr2": {"vision": {"output_channels": 16, "mlp_dim": 16, "global_attn_indexes": [1], "num_pos_feats": 8}},
    "idefics2": {
        "top": {
            "perceiver_config": {
                "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "num_key_value_heads": 2,
                "resampler_head_dim": 8, "hidden_size": 32,
            }
        }
    },
    "internvl": {"vision": {"image_size": [16, 16], "patch_size": [4, 4]}},
    "llava": {"top": {"vision_feature_layer": -1}},
    "llava_next": {"top": TILES},
    "llava_next_video": {"top": TILES},
    "llava_onevision": {"top": TILES},
    "qwen2_5_omni_thinker": {"top": OMNI},
    "qwen2_vl": {"vision": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}},
    "qwen3_5": {"text": {"layer_types": ["linear_attention", "full_attention"]}},
    "qwen3_omni_moe_thinker": {"top": OMNI},
    "video_llava": {"top": {"vision_feature_layer": -1}},
    "vipllava": {"top": {"vision_feature_layers": [-1, -2]}},
}  # fmt: skip
"""Settings of single classes."""
MROPE = (
    "glm4v", "glm4v_moe", "paddleocr_vl", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
    "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe",
)  # fmt: skip
"""The types with rotary positions of three axes."""
WHOLE: dict[str, dict[str, Any]] = {
    "gemma4": {
        "text_config": {
            "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "bos_token_id": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "eos_token_id": 2,
            "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, **WINDOWED,
        },
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        "audio_config": None, "image_token_id": IMAGE, "video_token_id": VIDEO,
    },
    "mllama": {
        "text_config": {
            "vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "bos_token_id": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "cross_attention_layers": [1], "eos_token_id": 2,
            "pad_token_id": 0,
        },
        "vision_config": {
            "hidden_size": 16, "attention_heads": 2, "num_hidden_layers": 1, "num_global_layers": 1, "image_size": 16,
            "intermediate_size": 32, "patch_size": 4, "vision_output_dim": 32, "intermediate_layers_indices": [0],
            "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
        },
        "image_token_index": IMAGE,
    },
}  # fmt: skip
"""Whole configurations of types whose parts have others than the usual settings."""
TYPES = [
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "gemma3", "gemma4", "glm4v", "glm4v_moe", "got_ocr2",
    "idefics2", "idefics3", "internvl", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3",
    "mllama", "paddleocr_vl", "paligemma", "qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5",
    "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llama_3", "video_llava", "vipllava",
]  # fmt: skip
"""The types that are compared."""


def config_of(name: str, layers: int | None = None) -> PretrainedConfig:
    """A tiny configuration of a type of model, with all layers or the first ones of its language part."""
    kind = CONFIG_MAPPING[name]
    if name in WHOLE:
        whole: PretrainedConfig = kind(**copy.deepcopy(WHOLE[name]))
        return whole
    usual, own = kind(), OTHERS.get(name, {})
    text = _settings(usual.text_config, TEXT, own.get("text", {}))
    if name in MROPE:
        sections = [2, 1, 1] if name.startswith("qwen3") else [1, 1, 2]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    if layers is not None:
        text["num_hidden_layers"] = layers
        if "layer_types" in text:
            text["layer_types"] = text["layer_types"][:layers]
    vision = _settings(usual.vision_config, VISION, own.get("vision", {}))
    top = {key: value for key, value in TOP.items() if key in _known(usual)}
    made: PretrainedConfig = kind(text_config=text, vision_config=vision, **copy.deepcopy(top | own.get("top", {})))
    return made


def _known(usual: PretrainedConfig) -> set[str]:
    return {*usual.to_dict(), *getattr(type(usual), "attribute_map", {})}


def _settings(usual: PretrainedConfig, values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What is set in a part of a configuration, which stays of its usual type."""
    known = _known(usual)
    return {key: value for key, value in values.items() if key in known} | own | {"model_type": usual.model_type}


def tiny_model(name: str, layers: int | None = None) -> PreTrainedModel:
    """A model of a type with random weights in float64."""
    with torch.device("meta"):
        size = AutoModelForImageTextToText.from_config(config_of(name, layers)).num_parameters()
    if size > MOST:
        raise ValueError(f"a {name} must have at most {MOST} weights, got {size}: set its other sizes in OTHERS.")
    torch.manual_seed(SEED)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(
        config_of(name, layers), experts_implementation="eager"
    )
    for weight in model.parameters():
        if weight.ndim == 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.double().eval()


def first_layer(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """A draft: vision tower and first layer of a model, with its embedding, norm and head."""
    draft = tiny_model(name, 1)
    wanted = draft.state_dict()
    draft.load_state_dict({path: weight for path, weight in model.state_dict().items() if path in wanted}, strict=False)
    return draft


def prompts(name: str, model: Any) -> dict[str, Tensor]:
    """Three prompts with an image each, padded on the left; images differ in size where their model takes that."""
    visual, counts = _images(name, model)
    draw = torch.Generator().manual_seed(SEED)
    rows = [
        [9, START, *[IMAGE] * count, END, *torch.randint(9, TEXT["vocab_size"], (tail,), generator=draw).tolist()]
        for count, tail in zip(counts, (5, 9, 3), strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), **visual}


def _images(name: str, model: Any) -> tuple[dict[str, Tensor], list[int]]:
    """Pixels of three images in the form that a class reads, and the number of tokens of each."""
    draw = torch.Generator().manual_seed(SEED)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    names = inspect.signature(model.forward).parameters
    if name == "gemma4":
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(3, -1, -1)
        return {"pixel_values": pixels(3, 16, 48), "image_position_ids": places}, [4, 4, 4]
    if name == "mllama":
        one = torch.ones(3, 1, 1, dtype=torch.long)
        tiles = {"aspect_ratio_ids": one[..., 0], "aspect_ratio_mask": one}
        return {"pixel_values": pixels(3, 1, 1, 3, 16, 16), **tiles}, [1, 1, 1]
    if "image_grid_thw" in names:
        grid = torch.tensor([[1, 4, 6], [1, 4, 4], [1, 2, 4]])
        frames = 1 if name in ("paddleocr_vl", "video_llama_3") else model.config.vision_config.temporal_patch_size
        shape = (3, 4, 4) if name == "paddleocr_vl" else (3 * frames * 4 * 4,)
        visual = {"pixel_values": pixels(int(grid.prod(-1).sum()), *shape), "image_grid_thw": grid}
        merges = {"image_merge_sizes": torch.full((3,), 2)} if name == "video_llama_3" else {}
        return visual | merges, (grid.prod(-1) // 4).tolist()
    if name == "video_llava":
        visual = {"pixel_values_images": pixels(3, 3, 16, 16)}
    elif "pixel_attention_mask" in names and name != "aria":
        visual = {"pixel_values": pixels(3, 1, 3, 16, 16), "pixel_attention_mask": torch.ones(3, 1, 16, 16).bool()}
    elif "image_grid_pinpoints" in model.config.to_dict():
        sizes = torch.tensor([[16, 32], [16, 32], [32, 16]])
        visual = {"pixel_values": pixels(3, 3, 3, 16, 16), "image_sizes": sizes}
    else:
        visual = {"pixel_values": pixels(3, 3, 16, 16)}
        visual |= {"image_sizes": torch.full((3, 2), 16)} if name == "mistral3" else {}
    with torch.no_grad():
        features = model.model.get_image_features(**visual).pooler_output
    parts = list(features) if isinstance(features, (list, tuple)) else [features]
    counts = [part.numel() // part.shape[-1] for part in parts]
    return visual, counts if len(counts) == 3 else [sum(counts) // 3] * 3


def handed(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``model.generate`` needs beside a batch: the kinds of its tokens."""
    kinds = (batch["input_ids"] == IMAGE).long()
    names = ("mm_token_type_ids", "token_type_ids")
    return {name: kinds for name in names if name in inspect.signature(model.forward).parameters}


def reference(model: Any, batch: dict[str, Tensor]) -> list[list[int]]:
    """What ``model.generate`` adds to each prompt."""
    out = model.generate(**batch, **handed(model, batch), max_new_tokens=NEW, do_sample=False)
    texts: list[list[int]] = out[:, -NEW:].tolist()
    return texts


def decoders(name: str, model: PreTrainedModel | None) -> dict[str, Callable[[], Decoder]]:
    """The text decoders of :func:`benchmarks.decoding.classes.decoders`, with a draft of the class, and SpecVLM."""
    made = classes.decoders(name, model)  # type: ignore[arg-type]
    others: dict[str, Callable[[], Decoder]] = {
        "AssistedDecoding": lambda: classes.AssistedDecoding(
            first_layer(name, model),  # type: ignore[arg-type]
            draft_length=4, confidence_threshold=0.0, control="fixed",
        ),
        "SpecVLM": lambda: SpecVLM(
            prune_ratio=0.5, selector="uniform" if is_windowed(model) else "two_stage", control="fixed"
        ),
    }  # fmt: skip
    return made | others


def outcomes(name: str) -> dict[str, str]:
    """``equal``, or the line of the refusal, for each decoder.

    Raises:
        ArithmeticError: A decoder writes another text than ``model.generate``.
    """
    model = tiny_model(name)
    batch = prompts(name, model)
    return compared(model, batch, decoders(name, model), lambda: reference(model, batch), handed(model, batch))


def particular(model: PreTrainedModel) -> str:
    """What is particular to a class, in words."""
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    deep = "deepstack_visual_indexes" in model.config.vision_config.to_dict()
    words = [kind_of(model), "M-RoPE" if "mrope_section" in rope else "", "DeepStack" if deep else ""]
    return ", ".join(word for word in words if word)


def measured(name: str) -> dict[str, Any]:
    """The row of one type of model."""
    model = tiny_model(name)
    found = outcomes(name)
    equal = sum(value == "equal" for value in found.values())
    facts = {"class": type(model).__name__, "kind": particular(model), "outcomes": found}
    return row("vision_classes", name, "decoders", "equal", [equal], "decoders", seed=SEED, extra=facts)


def main() -> None:
    """Compares all classes, or those named, and writes their rows."""
    compare_types(__doc__, TYPES, measured)


if __name__ == "__main__":
    main()
