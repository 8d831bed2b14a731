"""Special tokens that a text spells are text; a long text in pieces has the tokens of the whole."""

import itertools
import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from saccade.datamodules.text import encoding
from saccade.datamodules.text.encoding import Piece, TextEncoder, in_batches, text_only
from saccade.datamodules.text.reading import Block
from tests.datamodules.text.tokenizers_of_families import FAMILIES, LOSSLESS, TEXTS


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param, FAMILIES[request.param]()


def _encoded(encoder, blocks):
    pieces = list(encoder.pieces(blocks))
    return pieces, np.concatenate([tokens for batch in in_batches(pieces) for tokens in encoder.encode(batch)])


def test_no_text_becomes_a_special_token(family):
    name, tokenizer = family
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    core = text_only(tokenizer)
    for token in tokenizer.all_special_tokens:
        for text in (token, f"before {token} after", f"{token}{token}\n{token}", f"story of{token}"):
            ids = core.encode(text, add_special_tokens=False).ids
            assert ids
            assert not special & set(ids)
            if name in LOSSLESS and token != tokenizer.unk_token:
                assert tokenizer.decode(ids) == text
                assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_other_text_has_the_tokens_of_the_tokenizer_itself(family):
    name, tokenizer = family
    core = text_only(tokenizer)
    for text in [*TEXTS, "<think> </think>x", "<", " ", "\n"]:
        assert core.encode(text, add_special_tokens=False).ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    if name == "llama3":  # an added token that is not special stands for its own text
        assert core.encode("<think>", add_special_tokens=False).ids == [tokenizer.convert_tokens_to_ids("<think>")]


def test_the_tokenizer_itself_is_not_changed(family):
    _, tokenizer = family
    before = tokenizer.backend_tokenizer.to_str()
    text_only(tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer(tokenizer.eos_token, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


def test_a_tokenizer_that_cuts_and_pads_does_neither_to_a_corpus():
    tokenizer = FAMILIES["own"]()
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert text_only(tokenizer).decode(text_only(tokenizer).encode(TEXTS[0]).ids) == TEXTS[0]


@pytest.mark.parametrize("mark", ["!", "or"])
def test_a_mark_that_is_also_a_piece_of_words_stays_one(mark):
    """Some tokenizers pad with a character or a word of their vocabulary, which texts need."""
    tokenizer = FAMILIES["own"]()
    tokenizer.add_special_tokens({"pad_token": mark})
    assert mark in FAMILIES["own"]().get_vocab()
    for text in ("stop!", "a story for you, or what?!"):
        assert text_only(tokenizer).encode(text).ids == FAMILIES["own"]()(text)["input_ids"]


@pytest.mark.parametrize("joint", [" ", "\n", "", "\r\n"])
def test_pieces_have_the_tokens_of_the_whole_text(family, joint, monkeypatch):
    _, tokenizer = family
    monkeypatch.setattr(encoding, "PIECE", 300)
    monkeypatch.setattr(encoding, "_REACH", 150)
    rng = random.Random(0)
    words = "".join(TEXTS).split(" ")
    text = joint.join(rng.choice(words) + rng.choice(["", " ", "\n", "."]) for _ in range(2000))
    places = [0, *sorted(rng.sample(range(len(text)), 20)), len(text)]
    blocks = [Block("train", text[a:b], b == len(text)) for a, b in itertools.pairwise(places)]
    encoder = TextEncoder(tokenizer)
    pieces, tokens = _encoded(encoder, blocks)
    assert len(pieces) > 20
    assert encoder.other_cuts == 0
    assert tokens.tolist() == [*text_only(tokenizer).encode(text, add_special_tokens=False).ids, tokenizer.eos_token_id]


def test_cuts_that_change_tokens_are_counted(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 300)
    monkeypatch.setattr(encoding, "_REACH", 150)
    tokenizer = FAMILIES["own"]()
    encoder = TextEncoder(tokenizer)
    text = "x" * 1000  # one word, and nothing to split at
    core = Tokenizer(models.BPE({"x": 0, "xx": 1, "xxx": 2}, [("x", "x"), ("xx", "x")]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder.core = core
    pieces, _ = _encoded(encoder, [Block("train", text, True)])
    assert "".join(piece.text[piece.context :] for piece in pieces) == text
    assert encoder.other_cuts == len(pieces) - 1 == 2


def test_every_document_ends_with_the_end_of_sequence():
    tokenizer = FAMILIES["own"]()
    texts = ["one", "", "two"]
    _, tokens = _encoded(TextEncoder(tokenizer), [Block("train", text, True) for text in texts])
    assert tokenizer.decode(tokens) == "".join(text + tokenizer.eos_token for text in texts)


def test_batches_are_bounded_and_keep_the_order(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH", 10)
    monkeypatch.setattr(encoding, "_MOST_PIECES", 3)
    pieces = [Piece("train", "x" * size, 0, True) for size in (1, 1, 1, 9, 1, 30, 2)]
    batches = list(in_batches(pieces))
    assert [[len(piece.text) for piece in batch] for batch in batches] == [[1, 1, 1], [9, 1], [30], [2]]
