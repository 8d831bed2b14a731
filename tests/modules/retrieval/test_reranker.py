"""The reranker: cross features, its three styles and their losses."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.modules.lora import LoraSettings
from saccade.modules.retrieval.cross_features import NAMES, CrossFeatures, FeatureScorer
from saccade.modules.retrieval.reranker import Reranker
from tests.modules.retrieval.hugging_face_models import bert, t5

TEXTS = [
    f"{a} {b} in the {c} town" for a in ("red", "green", "blue") for b in ("houses", "boats") for c in ("old", "new")
]


def ready(**settings):
    module = Reranker(width=4, **settings)
    module.prepare({"here": TEXTS, "there": TEXTS[:6]}, "here")
    return module


def test_features_are_what_they_are_called():
    features = CrossFeatures(TEXTS, width=4)
    query = "red houses"
    found = dict(zip(NAMES, features(query, [TEXTS[0], TEXTS[-1]]).T.tolist(), strict=True))
    assert found["words"] == pytest.approx([1, 0], abs=1e-4)
    assert found["pairs"] == pytest.approx([1 / 2, 0])
    assert found["length"] == pytest.approx([0, 0])
    idf = [features.encoder.idf[features.encoder.row(word)].item() for word in query.split()]
    assert found["rarest"] == pytest.approx([max(idf), 0])
    # every text has the mean length and each word once: (k1 + 1) / (1 + k1) of the idf
    assert found["bm25"] == pytest.approx([sum(idf) / math.sqrt(3), 0])
    assert found["bm25_share"][0] == pytest.approx(1, abs=1e-4)
    assert found["cosine"][0] > found["cosine"][1]


def test_untrained_it_ranks_as_bm25():
    module = ready()
    documents = {str(place): text for place, text in enumerate(TEXTS)}
    run = module.rerank({"q": "green boats old"}, {"q": list(documents)}, documents)["q"]
    bm25 = module.collections["here"]("green boats old", TEXTS)[:, 0]
    assert list(run.values()) == pytest.approx(bm25.tolist())


def batch():
    return {
        "query": ["red houses", "red houses", "red houses", "blue boats"],
        "document": [TEXTS[0], TEXTS[5], TEXTS[10], TEXTS[4]],
        "label": torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "source": ["here", "here", "here", "there"],
    }


def test_loss_contrasts_a_positive_with_the_negatives_of_its_query_and_source():
    module = ready()
    features = module.collections["here"]("red houses", [TEXTS[0], TEXTS[5], TEXTS[10]])
    wanted = -module.scorer(features).log_softmax(-1)[0]
    # the pair of the other source has nobody to be told from, and does not count
    assert torch.allclose(module.loss(batch()), wanted)


def test_documents_of_other_queries_stand_in_where_there_are_no_negatives():
    module = ready()
    pairs = {"query": ["red houses", "blue boats"], "document": [TEXTS[0], TEXTS[10]], "label": torch.ones(2)}
    first = -module.scorer(module.collections["here"]("red houses", [TEXTS[0], TEXTS[10]])).log_softmax(-1)[0]
    second = -module.scorer(module.collections["here"]("blue boats", [TEXTS[10], TEXTS[0]])).log_softmax(-1)[0]
    assert torch.allclose(module.loss(pairs), (first + second) / 2)


def test_hard_negatives_and_documents_of_other_queries_count_together():
    module = ready()
    pairs = {"query": ["red houses", "blue boats"], "document": [TEXTS[0], TEXTS[10]], "label": torch.ones(2)}
    pairs["negatives"] = [[TEXTS[3], TEXTS[5]], []]
    first = module.collections["here"]("red houses", [TEXTS[0], TEXTS[3], TEXTS[5], TEXTS[10]])
    second = module.collections["here"]("blue boats", [TEXTS[10], TEXTS[0]])
    wanted = -module.scorer(first).log_softmax(-1)[0] - module.scorer(second).log_softmax(-1)[0]
    assert torch.allclose(module.loss(pairs), wanted / 2)


def test_training_lowers_the_loss_and_leaves_other_collections_alone():
    module = ready(learning_rate=0.05)
    optimizer = module.configure_optimizers()
    before = float(module.loss(batch()).detach())
    for _ in range(20):
        optimizer.zero_grad()
        module.loss(batch()).backward()
        optimizer.step()
    assert float(module.loss(batch()).detach()) < before / 2


def test_a_batch_that_teaches_nothing_has_a_gradient():
    module = ready()
    loss = module.loss(batch() | {"label": torch.zeros(4)})
    loss.backward()
    assert loss == 0
    assert all(weight.grad is not None for weight in module.parameters())


def test_an_unread_collection_is_named():
    with pytest.raises(ValueError, match=r"^source must be a collection that was prepared \(here, there\), got 'x'"):
        ready().loss(batch() | {"source": ["x"] * 4})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "logit"}, "path must be null for style=features"),
        ({"path": "x", "style": "features"}, "path must be null for style=features"),
        ({"style": "big"}, "style must be features, logit or seq2seq, got "),
        ({"lora": LoraSettings()}, "lora must be null without a path"),
        ({"hidden": 0}, "hidden must be at least 1, got "),
        ({"max_length": 1}, "max_length must be at least 8, got "),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got "),
        ({"path": "./no/such"}, "path must be a reranker, got './no/such'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match="^" + message) as caught:
        Reranker(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("style", "make"), [("logit", bert), ("seq2seq", t5)])
def test_hugging_face_styles_learn_and_do_not_see_the_padding(tmp_path, style, make):
    torch.manual_seed(0)
    module = Reranker(make(tmp_path / "base", TEXTS), style, max_length=24, learning_rate=1e-2)
    texts = [TEXTS[0], " ".join(TEXTS[:3])]
    assert module.score("red houses", texts)[0] == pytest.approx(module.score("red houses", texts[:1])[0], abs=1e-5)
    optimizer = module.configure_optimizers()
    before = float(module.loss(batch()).detach())
    for _ in range(30):
        optimizer.zero_grad()
        module.loss(batch()).backward()
        optimizer.step()
    assert float(module.loss(batch()).detach()) < before / 2
    good, bad = module.score("red houses", [TEXTS[0], TEXTS[5]])
    assert good > bad


def test_a_long_document_is_cut_and_the_question_stays(tmp_path):
    module = Reranker(t5(tmp_path / "base", TEXTS), "seq2seq", max_length=16)
    prompt = module.scorer._prompt("red houses", " ".join(TEXTS))
    assert prompt.startswith("Query: red houses Document: red")
    assert prompt.endswith("Relevant:")
    assert len(module.scorer.tokenizer(prompt)["input_ids"]) <= 16


@pytest.mark.parametrize(("style", "make"), [("logit", bert), ("seq2seq", t5)])
def test_lora_trains_adapters_and_a_new_head_only(tmp_path, style, make):
    names = ["query"] if style == "logit" else ["q"]
    module = Reranker(make(tmp_path / "base", TEXTS), style, lora=LoraSettings(rank=2, target_modules=names))
    module.loss(batch()).backward()
    learned = [name for name, weight in module.named_parameters() if weight.grad is not None]
    assert any("lora_" in name for name in learned)
    assert all("lora_" in name or "classifier" in name for name in learned)


def test_16_bit_weights_tell_candidates_apart():
    """DeepSpeed makes the weights bfloat16; scores that were bfloat16 too would tie."""
    scorer = FeatureScorer()
    features = torch.zeros(50, len(NAMES))
    features[:, 0] = 20 + torch.arange(50) / 1000
    scores = scorer.to(torch.bfloat16)(features)
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == 50
    scores.sum().backward()
    assert scorer.linear.weight.grad.dtype == torch.bfloat16
