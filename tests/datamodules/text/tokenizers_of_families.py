"""Small tokenizers that are built like those of well-known model families."""

import json
from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from saccade.datamodules.text.tokenization import train_tokenizer

UNKNOWN, END, PAD = "<unk>", "</s>", "<pad>"

TEXTS = [
    "It's a story of 12345 words: größe, naïve, 你好世界, and so on; don't stop!\n\n\tdef f(x):  return x**2  # y?\r\n",
    "Numbers 1 22 333 4444 55555, mails a.b@c.de, and   many    blanks.\n\n\n  Ends here 🙂 or there.\n",
]
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def own() -> PreTrainedTokenizerFast:
    """The one that a corpus trains."""
    return train_tokenizer(TEXTS, 400)


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level with another pattern; special tokens beside the vocabulary, and added ones that are not special."""
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT4), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        ),
    )
    end, pad = "<|im_end|>", "<|end_of_text|>"
    core.add_special_tokens(["<|begin_of_text|>", pad, end])
    core.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, pad_token=pad)


def llama2() -> PreTrainedTokenizerFast:
    """SentencePiece as BPE: blanks become a character, one is put first, and nothing is split before the merges."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=[UNKNOWN, "<s>", END], show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    vocabulary = trained.get_vocab()
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, unk_token=UNKNOWN)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece as Unigram, whose own vocabulary has the special tokens with the best scores."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    alphabet = [*sorted(set("".join(TEXTS)) - set(" \n\t\r")), *"<>/|end"]
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[PAD, END, UNKNOWN], unk_token=UNKNOWN, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)


def words() -> PreTrainedTokenizerFast:
    """A vocabulary of whole words, the special tokens among them."""
    core = Tokenizer(models.WordLevel({UNKNOWN: 0, END: 1, PAD: 2, "story": 3, "of": 4}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "own": own, "llama3": llama3, "llama2": llama2, "unigram": unigram, "words": words,
}  # fmt: skip
LOSSLESS = ("own", "llama3", "llama2")
