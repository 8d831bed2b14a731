"""Negatives that an encoder finds itself: never an answer, those it takes for one, the same for the same encoder."""

from __future__ import annotations

import pytest
import torch

from saccade.datamodules.retrieval.files import Pair
from saccade.modules.retrieval.hashed_encoder import HashedEncoder
from saccade.modules.retrieval.mined_negatives import MinedNegatives

CPU = torch.device("cpu")
FRUITS, TRAINS = ("apple", "pear", "plum", "cherry"), ("steam", "diesel", "freight", "tram")
SOURCES = {
    "fruits": (
        [
            *(Pair(f"eat {fruit}", f"the {fruit} is eaten on day {day}", 1) for fruit in FRUITS for day in range(2)),
            Pair("eat apple", "the pear is eaten on day 0", 0),
            Pair("unanswered", "nobody knows", 0),
        ],
        [f"the {fruit} is eaten on day {day}" for fruit in FRUITS for day in range(4)] + ["nobody knows"],
    ),
    "trains": ([Pair(f"eat {name}", f"a {name} train", 1) for name in TRAINS], [f"a {name} train" for name in TRAINS]),
}


def mined(count=3, seed=0, encoder=None):
    negatives = MinedNegatives(SOURCES, count, seed)
    encoder = encoder or HashedEncoder(256, 8)
    with torch.no_grad():
        negatives.refresh(encoder, CPU)
    return negatives


def every(negatives):
    return {(name, query): negatives.of(name, query) for name, asked in negatives.answers.items() for query in asked}


def test_nothing_before_the_first_refresh_or_where_nothing_answers():
    assert MinedNegatives(SOURCES, 3).of("fruits", "eat apple") == []
    assert mined().of("fruits", "unanswered") == []
    assert mined().of("fruits", "eat steam") == []
    assert mined().of("other", "eat apple") == []


def test_no_negative_answers_and_all_come_from_the_querys_own_collection():
    for count in (1, 3, 100):
        for (name, query), texts in every(mined(count)).items():
            right = {pair.document for pair in SOURCES[name][0] if pair.query == query and pair.label > 0}
            assert set(texts) <= set(SOURCES[name][1]) - right
            assert len(texts) == len(set(texts)) == min(count, len(SOURCES[name][1]) - len(right))


def test_they_are_what_the_encoder_finds():
    """Of more than fifty documents, those drawn are among the nearest that are wrong."""
    texts = [f"word{place} text" for place in range(200)]
    vectors = {text: torch.tensor([1.0, -place / 200]) for place, text in enumerate(texts)}
    pairs = [Pair("asked", texts[0], 1), Pair("asked", texts[7], 1)]
    negatives = MinedNegatives({"all": (pairs, texts)}, 10)
    negatives.refresh(lambda asked: torch.stack([vectors.get(text, torch.tensor([0.0, 1.0])) for text in asked]), CPU)
    found = negatives.of("all", "asked")
    assert len(found) == 10
    assert {texts.index(text) for text in found} <= set(range(1, 52)) - {7}


def test_the_same_encoder_gives_the_same_and_another_one_others():
    encoder = HashedEncoder(256, 8)
    first = mined(encoder=encoder)
    before = every(first)
    assert every(mined(encoder=encoder)) == before
    assert every(mined(seed=1, encoder=encoder)) != before
    texts = [f"number{place} of many" for place in range(120)]
    pairs = [Pair("which number0", texts[0], 1)]
    negatives = MinedNegatives({"all": (pairs, texts)}, 5)
    seen = []
    for seed in (0, 1):
        with torch.no_grad():
            negatives.refresh(HashedEncoder(256, 8, seed=seed), CPU)
        seen.append(negatives.of("all", pairs[0].query))
    assert seen[0] != seen[1]


def test_every_text_is_encoded_once_and_counted():
    negatives, encoder, asked, counted = MinedNegatives(SOURCES, 3), HashedEncoder(256, 8), [], []

    def encode(texts):
        asked.extend(texts)
        return encoder(texts).detach()

    negatives.refresh(encode, CPU, counted.append)
    assert sum(counted) == len(asked) == len(negatives) == 17 + 4 + 4 + 4


def test_a_state_gives_them_back_and_another_pools_is_refused():
    first, second = mined(), MinedNegatives(SOURCES, 3)
    second.load_state_dict(first.state_dict())
    assert every(second) == every(first)
    with pytest.raises(
        ValueError, match=r"^mined_negatives of the checkpoint must have the shape \[4, 5\] in source \w+, got \[4, 3\]"
    ):
        MinedNegatives(SOURCES, 5).load_state_dict(first.state_dict())
    less = {"fruits": (SOURCES["fruits"][0][:2], SOURCES["fruits"][1])}
    with pytest.raises(ValueError, match=r"start without --ckpt_path\.$"):
        MinedNegatives(less, 3).load_state_dict(first.state_dict())
