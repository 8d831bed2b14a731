"""Folders of tiny models with a tokenizer and a chat template, and files of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from saccade.datamodules.text.tokenization import train_tokenizer
from saccade.datamodules.video.tokenization import END, START, train_video_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEXTS = ["the quick brown fox says hello, what is two and two? " * 8, "[user] [assistant] [system] answer 0123456789"]


def chat_model(folder: Path, template: str | None = TEMPLATE, context: int = 256, layers: int = 2) -> str:
    """Write a random Llama that never ends a text by itself, in float32, and return its folder."""
    tokenizer = train_tokenizer(TEXTS, 290)
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(layers)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


QWEN_PADS = ("<|image_pad|>", "<|video_pad|>")
QWEN_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 1024, "initializer_range": 0.2,
}  # fmt: skip


def chat_qwen(folder: Path, tokens: tuple[str, ...] = (START, END, *QWEN_PADS), spare: int = 3, **settings: Any) -> str:
    """A folder with a tiny Qwen2 in bfloat16, its tokenizer with the given special tokens, and unused rows."""
    tokenizer = train_tokenizer(["Describe this video.", "a plain backdrop, one digit"], 280)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(tokens), "eos_token": END if END in tokens else "<|end|>"}
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + spare, **QWEN_SHAPE | settings))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def vision_chat_model(folder: Path) -> str:
    """Write a random Qwen2.5-VL, and return its folder."""
    tokenizer = train_video_tokenizer(TEXTS, 300, "qwen2_5_vl")
    ids = tokenizer.get_vocab()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [0], "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, video_token_id=ids["<|video_pad|>"],
        image_token_id=ids["<|image_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_prompts(path: Path, rows: Iterable[Any]) -> str:
    """Write JSON lines; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
