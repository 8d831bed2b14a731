"""Decoders measured on files of prompts: categories, turns, quality of answers, passes, prompts that are too long."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from PIL import Image
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from saccade.callbacks import DecodingEvaluation
from saccade.callbacks.decoding import tables
from saccade.callbacks.decoding.conversations import Conversations
from saccade.callbacks.decoding.prompts import Prompt
from saccade.datamodules import Prompts
from saccade.inference import Autoregressive, Double, PromptLookup, StoredText, TextStore
from saccade.modules import LanguageModel, VisionLanguageModel
from tests.callbacks.tiny import trainer
from tests.support.chat_models import chat_model, vision_chat_model, write_prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return chat_model(tmp_path_factory.mktemp("chat"))


def run(
    folder: Path, source: str, rows: list, data: dict | None = None, module: Any = LanguageModel, **settings: Any
) -> tuple[list[dict], Trainer]:
    folder.mkdir(exist_ok=True)
    prompts = Prompts([write_prompts(folder / "p.jsonl", rows)], **(data or {}))
    decoders = settings.pop("decoders", {"lookup": PromptLookup()})
    callback = DecodingEvaluation(decoders, **({"max_new_tokens": 8, "max_prompts": None} | settings))
    runner = trainer(folder, callbacks=[callback], precision="64-true")
    runner.validate(module(path=source), prompts, verbose=False)
    return callback.rows, runner


def at(rows: list[dict], name: str, category: str | None = None) -> dict:
    (found,) = (row for row in rows if row["name"] == name and row["category"] == category)
    return found


ROWS = [
    {"prompt": "hello fox", "category": "a", "id": "first"},
    {"prompt": "two and two?", "category": "b", "answer": "4"},
    {"turns": ["one", "quick", "brown"], "category": "b", "answers": ["x", None, ["y", "z"]]},
]


def test_a_row_for_each_decoder_and_category(tmp_path, model, capsys):
    rows, runner = run(tmp_path, model, ROWS)
    assert [(row["name"], row["category"]) for row in rows] == [
        (name, category) for name in ("autoregressive", "lookup") for category in (None, "a", "b")
    ]
    assert json.loads((tmp_path / "decoding.json").read_text()) == rows
    for name in ("autoregressive", "lookup"):
        whole, a, b = (at(rows, name, category) for category in (None, "a", "b"))
        assert [row["statistics"]["requests"] for row in (whole, a, b)] == [5, 1, 4]
        for count in ("new_tokens", "drafted", "accepted", "target_forwards", "prompt_tokens"):
            assert whole["statistics"][count] == a["statistics"][count] + b["statistics"][count]
        assert whole["statistics"]["seconds"] == pytest.approx(a["statistics"]["seconds"] + b["statistics"]["seconds"])
        assert whole["agreement"]["identical_rows"] == 5
        assert whole["agreement"]["differing_prompts"] == []
        assert whole["ms_per_token"] == pytest.approx(1000 / whole["statistics"]["tokens_per_second"])
        assert [row["quality"]["answers"] for row in (whole, a, b)] == [3, 0, 3]
        assert a["quality"]["token_f1"] is None
        assert b["quality"]["numeric_match"] is not None
    speeds = [at(rows, name, "b")["statistics"]["tokens_per_second"] for name in ("lookup", "autoregressive")]
    assert at(rows, "lookup", "b")["speedup"] == pytest.approx(speeds[0] / speeds[1])
    # no loss is computed, and only rows of all prompts are logged
    assert "val_loss" not in runner.callback_metrics
    assert runner.callback_metrics["decoding/lookup/answers"] == 3
    printed = capsys.readouterr().out
    for text in ("speed by category", "agreement with known answers", "known to 3 of 5 questions"):
        assert text in printed


def test_later_turns_follow_the_answers_of_the_baseline(tmp_path, model, monkeypatch):
    asked: list[list[int]] = []
    original = Autoregressive.generate

    def spy(self, network, input_ids, *args, **settings):
        asked.append(list(input_ids[0]))
        return original(self, network, input_ids, *args, **settings)

    monkeypatch.setattr(Autoregressive, "generate", spy)
    run(tmp_path, model, [ROWS[2]], decoders={})
    data = Prompts([str(tmp_path / "p.jsonl")], tokenizer=model)
    data.setup()
    network = LanguageModel(path=model)
    network.build()
    network.model.double().eval()
    answers: list[str] = []
    for turn in range(3):
        ids, _ = data.encode(0, answers)
        assert asked[turn + 1] == ids  # the first call is not counted
        out = original(Autoregressive(), network.model, [ids], max_new_tokens=8, do_sample=False)
        answers.append(data.tokenizer.decode(out.tokens[0], skip_special_tokens=True).strip())


@dataclass
class Changed(Autoregressive):
    """Changes the last token of every row, and says that it does not."""

    def generate(self, *args: Any, **settings: Any) -> Any:
        out = super().generate(*args, **settings)
        for tokens in out.tokens:
            tokens[-1] = 20 if tokens[-1] != 20 else 21
        return out


def test_prompts_whose_texts_differ_are_named(tmp_path, model, capsys):
    rows, _ = run(tmp_path, model, ROWS, decoders={"changed": Changed()})
    agreement = at(rows, "changed")["agreement"]
    assert agreement["differing_prompts"] == ["first", "p-2", "p-3"]
    assert (agreement["differing_rows"], agreement["near_tie_rows"]) == (5, 0)
    # the conversation goes on with the baseline's answers, so each turn differs in the changed token only
    assert agreement["differing_tokens"] == 5
    assert "Prompts: first, p-2, p-3." in " ".join(capsys.readouterr().out.split())


def test_several_passes_count_all_and_have_a_range(tmp_path, model):
    once, _ = run(tmp_path / "once", model, ROWS, transformers=True)
    thrice, _ = run(tmp_path / "thrice", model, ROWS, transformers=True, repeats=3)
    for one, three in zip(once, thrice, strict=True):
        for count in ("requests", "new_tokens", "drafted", "accepted", "target_forwards"):
            assert three["statistics"][count] == 3 * one["statistics"][count]
        assert three["agreement"]["differing_rows"] == 0
        assert one["speedup_range"] is None
        low, high = three["speedup_range"]
        assert low <= three["speedup"] <= high
        for measure in ("token_f1", "rouge_l", "exact_match"):
            assert three["quality"][measure] == one["quality"][measure]
    screen = Console(width=80, record=True)
    screen.print(tables.table(thrice))
    assert max(len(line.rstrip()) for line in screen.export_text().splitlines()) <= 80


def test_batches_are_of_one_category_and_one_number_of_turns(tmp_path, model):
    rows = [*ROWS, {"turns": ["fox", "hello"], "category": "b"}, {"prompt": "brown", "category": "b"}]
    single, _ = run(tmp_path / "single", model, rows, transformers=True)
    together, _ = run(tmp_path / "together", model, rows, transformers=True, batch_size=4)
    for one, many in zip(single, together, strict=True):
        for count in ("requests", "new_tokens", "prompt_tokens"):
            assert one["statistics"][count] == many["statistics"][count]
        assert one["quality"] == many["quality"]
        assert many["agreement"]["differing_rows"] == 0


LONG = "fox " * 100  # longer than the context with what a template adds


def test_prompts_above_the_context_are_left_out_named_and_counted(tmp_path, caplog):
    source = chat_model(tmp_path / "short", context=96)
    turns = {"turns": ["one", LONG, "two"], "category": "b", "id": "talk"}
    rows = [*ROWS[:2], {"prompt": LONG, "category": "a", "id": "long"}, turns]
    with caplog.at_level("INFO"):
        found, _ = run(tmp_path, source, rows)
    whole = at(found, "lookup")
    assert (whole["skipped"], whole["cut"], whole["prompts"]) == (["long"], [], 3)
    assert whole["statistics"]["requests"] == 3  # two prompts and the first turn of the conversation
    assert whole["quality"]["turns_left_out"] == 2
    assert "1 prompt is left out, because the model's context has room for 89 tokens before 8 new ones: long with" in (
        caplog.text
    )
    assert "2 later turns are left out" in " ".join(tables.notes(found))


def test_prompts_above_the_context_are_cut_in_the_middle(tmp_path, caplog):
    source = chat_model(tmp_path / "short", context=96)
    rows = [*ROWS[:2], {"prompt": LONG + "end", "category": "a", "id": "long"}]
    with caplog.at_level("INFO"):
        found, _ = run(tmp_path, source, rows, data={"too_long": "cut"}, transformers=True)
    whole = at(found, "lookup")
    assert (whole["skipped"], whole["cut"], whole["prompt_length"]) == ([], ["long"], 96 - 8 + 1)
    assert whole["statistics"]["requests"] == 3
    assert at(found, "transformers")["agreement"]["differing_rows"] == 0
    assert "1 prompt is cut in the middle" in caplog.text


def test_what_is_cut_is_the_middle(tmp_path):
    source = chat_model(tmp_path / "short", context=64)
    data = Prompts([write_prompts(tmp_path / "p.jsonl", [{"prompt": f"first {LONG} last", "answer": "fox"}])], source)
    data.setup()
    (batch,) = data.val_dataloader()
    prompt = Prompt(batch["input_ids"][0], int(batch["prompt_length"]), item=0)
    network = LanguageModel(path=source)
    network.build()
    data.too_long = "cut"
    cut = Conversations(data, network.model, 24).fitted(prompt)
    assert cut is not None
    assert cut.length == 64 - 24 + 1
    text = data.tokenizer.decode(cut.text)
    assert text.startswith("[user]first fox")
    assert text.endswith("last<|end|>[assistant]fox")  # the answer stays behind the prompt
    assert data.tokenizer.decode(cut.tokens).endswith("[assistant]")


def test_images_and_texts_in_one_file(tmp_path):
    source = vision_chat_model(tmp_path / "vision")
    for name, size in (("a.png", (16, 24)), ("b.png", (32, 16))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    rows = [
        {"prompt": "what?", "images": ["a.png"]},
        {"prompt": "what?", "images": ["b.png"]},
        {"prompt": "which?", "images": ["a.png", "b.png"]},
        {"turns": ["what?", "why?"], "video": "a.png"},
        {"prompt": "hello"},
    ]
    kinds = {"data": {"max_pixels": 512, "frames": 2}, "module": VisionLanguageModel, "transformers": True}
    single, _ = run(tmp_path, source, rows, **kinds)
    together, _ = run(tmp_path, source, rows, **kinds, batch_size=3)
    for name in ("transformers", "lookup"):
        for found in (single, together):
            whole = at(found, name)
            assert whole["statistics"]["requests"] == 6
            assert whole["agreement"]["identical_rows"] == 6, (name, whole["agreement"])
    assert at(single, "lookup")["statistics"]["prompt_tokens"] == at(together, "lookup")["statistics"]["prompt_tokens"]


def test_a_name_that_means_transformers(tmp_path):
    with pytest.raises(ValueError, match="must not name a decoder transformers where transformers is true"):
        DecodingEvaluation({"transformers": PromptLookup()}, transformers=True)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        DecodingEvaluation({}, repeats=0)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("answer to the prompt", "knows prompt 1 of those that are measured"),
        ("prompt", "knows prompt 1 of those that are measured"),
        ("right answer", "knows answer 0 of those that are measured"),
        ("other tokenizer", "was made with another tokenizer than the model's"),
        ("something else", None),
    ],
)
def test_a_store_that_knows_the_answers_is_not_measured(tmp_path, model, kept, message):
    tokenizer = AutoTokenizer.from_pretrained(model)
    answer = "the quick brown fox and the quick brown fox"
    rows = [{"prompt": "hello fox"}, {"prompt": "one two and two one two and two one", "answer": answer}]
    data = Prompts([write_prompts(tmp_path / "read.jsonl", rows)], model)
    data.setup()
    (asked, _), words = data.encode(1, []), tokenizer.encode(answer, add_special_tokens=False)
    text = {
        "answer to the prompt": StoredText([5, 6, 7], asked),
        "prompt": StoredText([5, *asked, 6]),
        "right answer": StoredText([5, *words, 6]),
    }.get(kept, StoredText([5, 6, 7, 5, 6, 7, 5, 6, 7], [5, 6]))
    if kept == "other tokenizer":
        tokenizer.add_tokens(["<something>"])
    TextStore.of([text], tokenizer).save(tmp_path / "store.safetensors")
    draft = AutoModelForCausalLM.from_pretrained(model)
    decoders = {"double": Double(draft.double(), store=str(tmp_path / "store.safetensors"))}
    if message is None:
        found, _ = run(tmp_path / "run", model, rows, decoders=decoders)
        assert at(found, "double")["agreement"]["identical_rows"] == 2
        return
    with pytest.raises(ValueError, match=rf"^decoders.double \(Double\) failed: store .* {message}"):
        run(tmp_path / "run", model, rows, decoders=decoders)
