"""Conversations for training: the chat form, what is learned, the split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.datamodules import ChatCorpus
from saccade.modules import LanguageModel
from tests.modules.language.tiny import trainer
from tests.support.chat_models import chat_model, write_prompts
from tests.support.errors import one_line

ROWS = [
    {"prompt": "hello", "answer": "two"},
    {"prompt": "what", "answers": ["fox", "brown"]},
    {"turns": ["one", "fox"], "answers": ["quick", "and"]},
    {"messages": [{"role": "user", "content": "is"}, {"role": "assistant", "content": " cut"}],
     "finish_reason": "length"},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return chat_model(tmp_path_factory.mktemp("chat"))


def ready(source: str, folder: Path, *rows: object, **settings: object) -> ChatCorpus:
    data = ChatCorpus([write_prompts(folder / "p.jsonl", rows)], tokenizer=source, **settings)
    data.setup("fit")
    return data


def sequences(data: ChatCorpus, part: str) -> list[tuple[str, str]]:
    """Each sequence as text, and what is learned of it."""
    found = []
    for batch in data.train_dataloader() if part == "train" else data.val_dataloader():
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            assert torch.equal(labels[labels != -100], ids[labels != -100])
            assert not mask[labels.eq(-100).logical_not()].eq(0).any()
            found.append((data.tokenizer.decode(ids[mask == 1]), data.tokenizer.decode(ids[labels != -100])))
    return sorted(found)


def test_answers_are_learned_and_nothing_else(tmp_path, model):
    data = ready(model, tmp_path, *ROWS, batch_size=1)
    assert sorted(sequences(data, "train") + sequences(data, "validation")) == [
        ("[user]hello<|end|>[assistant]two<|end|>", "two<|end|>"),
        ("[user]is<|end|>[assistant] cut", " cut"),
        ("[user]one<|end|>[assistant]quick<|end|>", "quick<|end|>"),
        ("[user]one<|end|>[assistant]quick<|end|>[user]fox<|end|>[assistant]and<|end|>", "and<|end|>"),
        ("[user]what<|end|>[assistant]fox<|end|>", "fox<|end|>"),
    ]


def test_plain_text_and_a_system_prompt(tmp_path, model):
    data = ready(model, tmp_path, *ROWS[:2], batch_size=1, template="none", system="be brief")
    (text, learned), _ = sorted(sequences(data, "train") + sequences(data, "validation"))
    assert (text, learned) == ("be brief\n\nhellotwo<|end|>", "two<|end|>")


def test_the_token_that_ends_a_turn_is_that_of_the_template(tmp_path, model):
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}<|begin|>{{ m['content'] | trim }}<|pad|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>{% endif %}"
    )
    data = ready(model, tmp_path, *ROWS[:2], batch_size=1, template=str(tmp_path / "t.jinja"))
    learned = {part for _, part in sequences(data, "train") + sequences(data, "validation")}
    assert learned == {"two<|pad|>", "fox<|pad|>"}


def test_no_conversation_is_in_both_parts_and_none_moves(tmp_path, model):
    rows = [{"prompt": f"hello {number}", "answer": "two"} for number in range(40)]
    before = ready(model, tmp_path, *rows[:20], batch_size=1, validation_fraction=0.3)
    after = ready(model, tmp_path, *rows, batch_size=1, validation_fraction=0.3)
    for part, other in (("train", "validation"), ("validation", "train")):
        assert set(sequences(before, part)) <= set(sequences(after, part))
        assert not set(sequences(after, part)) & set(sequences(after, other))


def test_long_answers_are_cut_and_those_without_room_left_out(tmp_path, model, caplog):
    rows = [*ROWS[:2], {"prompt": "hello " * 30, "answer": "two"}, {"prompt": "no answer"}]
    with caplog.at_level("INFO"):
        data = ready(model, tmp_path, *rows, {"prompt": "one", "answer": "two " * 40}, batch_size=1, sequence_length=30)
    assert "2 of 5 conversations in files are left out" in caplog.text
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    lengths = [len(batch["input_ids"][0]) for batch in batches]
    assert max(lengths) == 30
    assert len(lengths) == 3


def test_what_cannot_be_used(tmp_path, model):
    one_line(lambda: ChatCorpus([]), "files must name files of conversations, got an empty list")
    one_line(lambda: ready(model, tmp_path, {"prompt": "x"}), "at least two conversations with an answer, got 0")
    one_line(lambda: ready(model, tmp_path, *ROWS, batch_size=50).train_dataloader(), "batch_size must leave one batch")
    (tmp_path / "i.png").touch()
    picture = {"prompt": "x", "images": ["i.png"], "answer": "y"}
    one_line(lambda: ready(model, tmp_path, picture), "p.jsonl, line 1: images and video must be left out")
    one_line(lambda: ChatCorpus([str(tmp_path / "p.jsonl")], sequence_length=1), "sequence_length must be at least 2")
    data = ready(model, tmp_path, *ROWS)
    data.load_state_dict(data.state_dict())
    one_line(lambda: data.load_state_dict({"tokenizer": "x"}), "tokenizer must be that of the checkpoint")


def test_the_loss_is_that_of_the_answers(tmp_path, model):
    """The logits of the answers only, and the padding of a batch, do not change the loss of a token."""
    data = ready(model, tmp_path, *ROWS, batch_size=4)
    module = LanguageModel(model)
    module.build(data.tokenizer)
    (batch,) = data.train_dataloader()
    losses, weights = module.token_losses(batch)
    wanted = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        ids, labels = ids[mask == 1][None], labels[mask == 1]
        probabilities = module.model(input_ids=ids).logits[0].log_softmax(-1)
        wanted += [-probabilities[i - 1, ids[0, i]] for i in range(1, len(labels)) if labels[i] != -100]
    assert int(weights.sum()) == len(wanted)
    assert torch.allclose((losses * weights).sum(), torch.stack(wanted).sum(), atol=1e-4)
    assert losses.shape[1] < batch["input_ids"].shape[1] - 1  # prompts at the beginning take no part


def test_a_model_learns_from_answers(tmp_path, model):
    data = ChatCorpus([write_prompts(tmp_path / "p.jsonl", ROWS)], batch_size=2)
    module = LanguageModel(model, learning_rate=1e-3)
    fit = trainer(tmp_path, max_steps=4)
    data.sequence_length = 64
    fit.fit(module, data)
    assert module.tokenizer is data.tokenizer
    assert fit.callback_metrics["val_loss"].isfinite()
