"""Train and load the tokenizer of a text corpus."""

import hashlib
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
MIN_VOCAB_SIZE = 256 + 3 + 1
"""All bytes, the special tokens, and at least one merge: below that nothing is learned."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: any text is encoded without loss.

    Args:
        texts: The documents.
        vocab_size: Most tokens, the three special ones (padding, begin, end) included; a small corpus gives fewer.

    Returns:
        The tokenizer; it adds no special tokens by itself.

    Raises:
        ValueError: The vocabulary cannot hold all bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"vocab_size: {vocab_size} is too small, a byte-level vocabulary needs at least {MIN_VOCAB_SIZE}"
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        # the default turns " ." into "." and breaks the round trip of source code
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or from the Hugging Face hub.

    Args:
        source: Folder or hub id.

    Returns:
        The fast tokenizer.

    Raises:
        ValueError: There is none, it has no fast form, or it has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"tokenizer: cannot load {source!r} ({reason})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer: {source!r} has no fast form (tokenizer.json); choose one that has")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: {source!r} has no eos_token, which separates the documents; set one and save it")
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of a tokenizer: its vocabulary, merges and rules, and the token that ends a text."""
    core = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(f"{core}/{tokenizer.eos_token}".encode()).hexdigest()
