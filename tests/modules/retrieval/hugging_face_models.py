"""Tiny models of transformers for rerankers, with a tokenizer of the words in given texts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, T5Config, T5ForConditionalGeneration

_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "true", "false", "Query", "Document", "Relevant", ":"]


def _tokenizer(folder: Path, texts: Sequence[str]) -> int:
    """Write a tokenizer; the number of its words."""
    folder.mkdir(exist_ok=True)
    words = _WORDS + sorted({word for text in texts for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    torch.manual_seed(0)
    return len(words)


def bert(folder: Path, texts: Sequence[str]) -> str:
    """Write a BERT with its tokenizer; the folder."""
    config = BertConfig(
        vocab_size=_tokenizer(folder, texts), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def t5(folder: Path, texts: Sequence[str]) -> str:
    """Write a T5 with a tokenizer; the folder."""
    config = T5Config(
        vocab_size=_tokenizer(folder, texts), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=3,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)
