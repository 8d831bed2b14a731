"""What is particular to Double; what all decoders share is tested in the folder above, its rounds in ``parallel``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.inference import Autoregressive, Double, Pearl, StoredText, TextStore
from tests.support.models import copy_layers, plant_constant, tiny_model

IDS = torch.tensor([[3, 1, 2]])


def test_a_round_gives_more_than_gamma_tokens_where_text_repeats() -> None:
    model, draft, ids = tiny_model(), tiny_model(), torch.tensor([[7] * 12])
    plant_constant(model, 7)
    plant_constant(draft, 7)
    tokens = {}
    for retrieval in ("none", "draft", "target", "both"):
        out = Double(draft, gamma=2, retrieval=retrieval).generate(model, ids, max_new_tokens=61)  # type: ignore[arg-type]
        assert out.tokens == [[7] * 61]
        tokens[retrieval] = 60 / (out.stats.target_forwards - 1)
    assert tokens["none"] == 2  # never above gamma
    assert tokens["draft"] > 6
    assert tokens["target"] > 6
    assert tokens["both"] > 10


def test_a_useless_draft_and_text_that_repeats_give_more_than_one_token_a_round() -> None:
    model, draft = tiny_model(), tiny_model()
    plant_constant(model, 7)
    plant_constant(draft, 8)
    ids = torch.tensor([[7] * 12])
    assert Pearl(draft, gamma=3).generate(model, ids, max_new_tokens=21).stats.target_forwards == 21
    out = Double(draft, gamma=3).generate(model, ids, max_new_tokens=21)
    assert out.tokens == [[7] * 21]
    assert out.stats.target_forwards <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrieval": "all"}, "retrieval must be both, draft, target or none, got 'all': choose one of these."),
        ({"candidate_length": 33}, "candidate_length must be at most 32, got 33: lower it."),
        ({"index": "tree"}, "index must be automaton, ngram or released, got 'tree': choose one of these."),
        ({"target_min_ngram": 0}, "target_min_ngram must be at least 1, got 0: raise it."),
        ({"gamma": 0}, "gamma must be at least 1, got 0: raise it."),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Double(draft_model="path/to/draft", **settings)  # type: ignore[arg-type]
    assert str(error.value) == message


class Words:
    """A tokenizer, as far as a store looks at it."""

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(40)}


def test_a_store_is_looked_up(tmp_path: Path) -> None:
    model = tiny_model()
    wanted = Autoregressive().generate(model, IDS, max_new_tokens=24).tokens
    draft = tiny_model(seed=1)
    plant_constant(draft, 39)
    TextStore.of([StoredText([3, 1, 2, *wanted[0]])], Words()).save(tmp_path / "texts.safetensors")
    rounds = {}
    for store in (None, str(tmp_path / "texts.safetensors")):
        out = Double(draft, max_ngram=4, store=store).generate(model, IDS, max_new_tokens=24)
        assert out.tokens == wanted
        rounds[store is None] = out.stats.target_forwards
    assert rounds[False] <= 5 < rounds[True]


def test_stores_that_do_not_fit(tmp_path: Path) -> None:
    model = tiny_model()
    decoder = Double(copy_layers(model, 1), store=str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^store must be an existing file, got .*none: build it again"):
        decoder.generate(model, IDS, max_new_tokens=2)
    TextStore.of([StoredText([40, 2])], Words()).save(tmp_path / "none")
    with pytest.raises(ValueError, match=r"holds token 40 and the model has 40 token ids, so it was made with another"):
        decoder.generate(model, IDS, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"holds token 40"):
        decoder.check(model)
