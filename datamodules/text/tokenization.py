"""Training and loading of the tokenizer of a text corpus."""

import hashlib
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saccade.common.checks import check_count

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
MIN_VOCAB_SIZE = 256 + 3 + 1
"""The smallest vocabulary: all bytes, the special tokens, and one merge."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which encodes any text without loss.

    Args:
        texts: The documents.
        vocab_size: Most tokens, including the three special ones (padding, begin, end); a small corpus gives fewer.

    Returns:
        The tokenizer; it does not add special tokens when it encodes.

    Raises:
        ValueError: The vocabulary cannot hold all bytes.
    """
    check_count("vocab_size", vocab_size, MIN_VOCAB_SIZE, "a byte-level vocabulary needs as many")
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
        # the default replaces " ." by ".", which changes source code
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or from the Hugging Face hub.

    Args:
        source: Folder or hub id.

    Returns:
        The fast tokenizer.

    Raises:
        ValueError: It cannot be loaded, is not a fast tokenizer, or has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot load tokenizer {source!r} ({reason}): give a folder or a hub id of a tokenizer."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"tokenizer must have a fast form (tokenizer.json), got {source!r} without: choose another.")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer must have an eos_token, got {source!r} without: set one and save the tokenizer.")
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of a tokenizer: of its vocabulary, merges and rules, and its end-of-sequence token."""
    core = tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(f"{core}/{tokenizer.eos_token}".encode()).hexdigest()


def check_same_tokenizer(digest: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a checkpoint whose model was trained with another tokenizer.

    Args:
        digest: `tokenizer_digest` of the checkpoint's tokenizer.
        tokenizer: The tokenizer of the data.

    Raises:
        ValueError: The tokenizers differ, so token numbers have another meaning.
    """
    if digest != tokenizer_digest(tokenizer):
        raise ValueError(
            "tokenizer must be that of the checkpoint, got another one (other files, settings or Python version): set"
            " it to the folder that the training run exported."
        )
