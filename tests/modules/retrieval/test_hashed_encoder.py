"""The encoder without pretrained weights: its features, and what fitting to unlabelled text makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.modules.retrieval.hashed_encoder import HashedEncoder

TEXTS = [f"{a} {b} and {c}" for a in ("red", "green", "blue") for b in ("houses", "boats") for c in ("wind", "rain")]


def test_words_count_with_the_logarithm_of_their_number():
    encoder = HashedEncoder(rows=4096, characters=0)
    rows, weights = encoder.features("red red red boat")
    one, _ = encoder.features("red")
    assert dict(zip(rows, weights, strict=True))[one[0]] == pytest.approx(1 + math.log(3))


def test_inflected_and_joined_words_meet():
    encoder = HashedEncoder(rows=4096)
    base, inflected, other = (set(encoder.features(text)[0]) for text in ("housing", "housings", "windmill"))
    assert len(base & inflected) > 2
    assert not base & other
    assert set(encoder.features("readFile")[0]) == set(encoder.features("read_file")[0])
    assert encoder.features("")[0] == []


def test_scripts_without_blanks_give_pairs_of_characters():
    encoder = HashedEncoder(rows=65536)
    assert encoder.words("readFile 信息检索 は") == ["read", "file", "信息", "息检", "检索", "は"]
    asked, near, far = (set(encoder.features(text)[0]) for text in ("信息检索", "检索系统", "天气很好"))
    assert asked & near
    assert not asked & far
    assert encoder.words("हिन्दी snake_case") == ["हिन्दी", "snake", "case"]


def test_vectors_have_length_one_and_depend_on_the_seed_alone():
    first, second, third = (HashedEncoder(512, 16, seed=seed)(TEXTS) for seed in (0, 0, 1))
    assert torch.allclose(first.norm(dim=-1), torch.ones(len(TEXTS)))
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)
    assert HashedEncoder(512, 16)([""]).norm() == 0


def test_fitted_directions_keep_the_inner_products_of_the_weights():
    """With as many directions as texts nothing is lost: cosines are those of TF-IDF."""
    encoder = HashedEncoder(rows=4096, width=len(TEXTS))
    encoder.fit(TEXTS)
    dense = torch.zeros(len(TEXTS), 4096)
    for place, text in enumerate(TEXTS):
        rows, weights = encoder.features(text)
        dense[place, rows] = torch.tensor(weights) * encoder.idf[rows]
    dense = torch.nn.functional.normalize(dense, dim=-1)
    found = encoder(TEXTS)
    assert torch.allclose(found @ found.T, dense @ dense.T, atol=0.02)


def test_common_words_weigh_less():
    encoder = HashedEncoder(rows=4096, characters=0)
    encoder.fit(TEXTS)
    common, rare = (encoder.features(word)[0][0] for word in ("and", "red"))
    assert encoder.idf[common] < encoder.idf[rare]
    assert encoder.idf.max() == 1


def test_fitting_is_deterministic_and_needs_two_texts():
    first, second = HashedEncoder(512, 4), HashedEncoder(512, 4)
    first.fit(TEXTS)
    second.fit(TEXTS)
    assert torch.equal(first(TEXTS), second(TEXTS))
    with pytest.raises(ValueError, match=r"^texts must be at least two texts, got 1: "):
        first.fit(TEXTS[:1])


def test_16_bit_weights_give_vectors_in_float32(monkeypatch):
    bag, summed = torch.nn.functional.embedding_bag, []

    def watched(index, table, *rest, **named):
        summed.extend([table.dtype, named["per_sample_weights"].dtype])
        return bag(index, table, *rest, **named)

    monkeypatch.setattr(torch.nn.functional, "embedding_bag", watched)
    encoder = HashedEncoder(rows=512, width=8)
    encoder.fit(["a red apple", "a green pear", "one blue river"])
    texts = ["red pear", "blue apple", ""]
    exact = encoder(texts)
    vectors = encoder.to(torch.bfloat16)(texts)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(vectors.norm(dim=1), torch.tensor([1.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    vectors.sum().backward()
    assert encoder.table.grad.dtype == torch.bfloat16
    assert set(summed) == {torch.float32}  # CUDA has no gradient of bfloat16 shares
