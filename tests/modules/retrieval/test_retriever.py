"""The dual encoder: what its loss contrasts, what its vectors are, and that a checkpoint gives it back."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, BertTokenizerFast

from saccade.modules.lora import LoraSettings
from saccade.modules.retrieval.retriever import Retriever

TOPICS = ("apples", "planets", "trains", "rivers")
TEXTS = [f"{topic} number {place} about {topic}" for topic in TOPICS for place in range(6)]


def small(**settings):
    return Retriever(rows=512, width=16, **settings)


def pairs():
    """The first words of a text should find the text of their topic."""
    return [
        {"query": [f"where are {topic}" for topic in TOPICS], "document": TEXTS[place::6], "label": torch.ones(4)}
        for place in range(6)
    ]


@torch.no_grad()
def mean_loss(module):
    return float(torch.stack([module.loss(batch) for batch in pairs()]).mean())


def test_loss_is_cross_entropy_over_the_documents_of_the_batch():
    module = small()
    batch = pairs()[0]
    asked, told = module(batch["query"]), module(batch["document"])
    wanted = torch.nn.functional.cross_entropy(asked @ told.T / module.temperature, torch.arange(4))
    assert torch.allclose(module.loss(batch), wanted)


def test_named_negatives_take_part_and_other_positives_of_a_query_do_not():
    module = small()
    query, good, better, bad, other = "where are apples", TEXTS[0], TEXTS[1], TEXTS[7], TEXTS[13]
    batch = {
        "query": [query, query, query, "where are trains"],
        "document": [good, better, bad, other],
        "label": torch.tensor([1.0, 1.0, 0.0, 1.0]),
    }
    told = module(batch["document"])

    def term(text, own, seen):
        scores = (module([text]) @ told[seen].T / module.temperature).log_softmax(-1)
        return -scores[0, seen.index(own)]

    wanted = term(query, 0, [0, 2, 3]) + term(query, 1, [1, 2, 3]) + term("where are trains", 3, [0, 1, 2, 3])
    assert torch.allclose(module.loss(batch), wanted / 3)


def test_a_batch_without_positives_has_no_loss_but_a_gradient():
    module = small()
    batch = pairs()[0] | {"label": torch.zeros(4)}
    loss = module.loss(batch)
    loss.backward()
    assert loss == 0
    assert all(weight.grad is not None for weight in module.parameters())


def test_fit_teaches_and_a_checkpoint_gives_it_back(tmp_path):
    module = small(learning_rate=3e-2)
    before = mean_loss(module)
    trainer = Trainer(
        max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(pairs(), batch_size=None))
    assert mean_loss(module) < before / 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Retriever.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(again.encode(TEXTS), module.encode(TEXTS))


def test_rerank_scores_the_candidates_and_nothing_else():
    module = small().train()
    documents = {str(place): text for place, text in enumerate(TEXTS)}
    queries = {"a": "apples", "b": "planets", "c": "nothing"}
    candidates = {"a": ["0", "7"], "b": ["7"], "c": []}
    run = module.rerank(queries, candidates, documents)
    assert {query: list(found) for query, found in run.items()} == candidates
    assert run["a"] == pytest.approx(dict(zip(["0", "7"], module.score("apples", [TEXTS[0], TEXTS[7]]), strict=True)))
    assert run["a"]["0"] > run["a"]["7"]
    assert module.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"learning_rate": -1}, "learning_rate must be above 0, got "),
        ({"weight_decay": -1}, "weight_decay must be at least 0, got "),
        ({"warmup_fraction": 2}, "warmup_fraction must be between 0 and 1, got "),
        ({"schedule": "linear"}, "schedule must be cosine or constant, got "),
        ({"lora": LoraSettings()}, "lora must be null without a path"),
        ({"rows": 1}, "rows must be at least 2, got "),
        ({"path": "./no/such"}, "path must be an encoder, got './no/such'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match="^" + message) as caught:
        Retriever(**settings)
    assert "\n" not in str(caught.value)


@pytest.fixture
def bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_hugging_face_encoder_does_not_see_the_padding(bert, pooling):
    module = Retriever(bert, pooling=pooling)
    alone = module.encode([TEXTS[0]])
    assert torch.allclose(module.encode([TEXTS[0], TEXTS[3] + " " + TEXTS[4]])[:1], alone, atol=1e-6)
    assert torch.allclose(alone.norm(dim=-1), torch.ones(1))


def test_lora_trains_adapters_only(bert):
    module = Retriever(bert, lora=LoraSettings(rank=2, target_modules=["query"]), learning_rate=1e-2)
    module.loss(pairs()[0]).backward()
    learned = [name for name, weight in module.named_parameters() if weight.grad is not None]
    assert learned
    assert all("lora_" in name for name in learned)
