"""The decoding benchmark on a model of a few thousand weights: its rows agree with what was measured."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.decoding import decode
from benchmarks.decoding.grow import Shape, weight_bytes
from benchmarks.rows import equal_texts
from saccade.inference import Autoregressive
from saccade.inference.huggingface.models import cache_bytes
from tests.support.models import tiny_model


@pytest.fixture
def rows(monkeypatch):
    kept: list[dict] = []
    monkeypatch.setattr(decode, "replace", kept.extend)
    return kept


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["decode", *arguments])
    decode.main()


def test_rows(inside, rows, monkeypatch, capsys):
    folder = "runs/demo-draft/latest/model"
    common = ("--model", folder, "--device", "cpu", "--prompts", "2", "--prompt-length", "12", "--new-tokens", "6")
    run(
        monkeypatch,
        *common,
        "--draft",
        folder,
        "--batch",
        "2",
        "--runs",
        "2",
        "--threads",
        "1",
        "--tree",
        "--skip",
        "auto",
    )
    by_method: dict[str, dict[str, dict]] = {}
    for item in rows:
        by_method.setdefault(item["method"], {})[item["metric"]] = item
    assert set(by_method) == {
        "transformers generate",
        "saccade Autoregressive",
        "saccade PromptLookup",
        "saccade AssistedDecoding",
        "saccade SelfSpeculative",
        "step of 1 token, auto",
        "step of a 26-node tree, auto",
    }
    ours = by_method["saccade Autoregressive"]
    assert set(ours) == {"tokens_per_second", "ms_per_token", "time_to_first_token"}
    assert ours["ms_per_token"]["identical_rows"] == ours["ms_per_token"]["rows"] == 2
    assert ours["ms_per_token"]["near_tie_rows"] == 0
    assert ours["ms_per_token"]["runs"] == 2
    assert ours["ms_per_token"]["target_forwards_per_token"] == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    needed = weight_bytes(model) + cache_bytes(model, 2, 12 + 3)
    bound = 1e3 * needed / ours["ms_per_token"]["bytes_per_second"]
    assert ours["ms_per_token"]["bound"] == pytest.approx(bound)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    printed = json.loads(last)
    assert printed["bytes"] == needed
    assert printed["saccade Autoregressive ms_per_token"] == pytest.approx(ours["ms_per_token"]["value"], abs=1e-4)


def test_a_grown_model_writes_the_same_text(inside, rows, monkeypatch):
    folder = "runs/demo-draft/latest/model"
    small = decode.AutoModelForCausalLM.from_pretrained(folder).config
    heads = small.num_attention_heads
    monkeypatch.setitem(
        decode.SHAPES,
        "7B",
        Shape(
            hidden_size=4 * small.hidden_size, intermediate_size=2 * small.intermediate_size,
            num_hidden_layers=small.num_hidden_layers + 1, num_attention_heads=heads,
            num_key_value_heads=small.num_key_value_heads, head_dim=4 * small.head_dim,
            vocab_size=small.vocab_size, tied=False,
        ),
    )  # fmt: skip
    common = ("--model", folder, "--device", "cpu", "--prompts", "1", "--prompt-length", "8", "--new-tokens", "5")
    run(monkeypatch, *common, "--runs", "1", "--threads", "1", "--shape", "7B", "--only", "generate", "Autoregressive")
    assert all(item["grown"] for item in rows)
    assert all(item["identical_rows"] == 1 for item in rows)
    assert "grown to 7B" in rows[0]["case"]


def test_the_tree_has_26_nodes_and_a_deep_path():
    assert len(decode.TREE) == 26
    assert max(decode.TREE.depths) >= 6


def test_bandwidth_is_of_this_world():
    assert 1e8 < decode.copy_bandwidth(torch.device("cpu")) < 1e13


def test_texts_that_differ_are_judged() -> None:
    model = tiny_model()
    prompts = [torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([[2, 6, 5]])]
    right = Autoregressive().generate(model, [[2, 6, 5]], max_new_tokens=4, do_sample=False).tokens[0]
    wrong = [*right[:2], (right[2] + 1) % 40, right[3]]
    assert not decode.near_tie(model, prompts)(2, wrong, right)
    facts = decode.Facts("decode", "case", 1.0, 1, True, False, None)
    results = {name: [[decode.Result([[1] * 4, text], 1.0, 2.0)]] for name, text in (("a", right), ("b", wrong))}
    for judge, wanted in ((None, None), (lambda *_: True, 1), (lambda *_: False, 0)):
        made = [item for item in decode.rows_of(facts, results, judge) if item["method"] == "b"]
        assert {(item["identical_rows"], item["near_tie_rows"]) for item in made} == {(1, wanted)}
    assert equal_texts({"identical_rows": 1, "near_tie_rows": 1, "rows": 2}) == "1 of 2, 1 near tie"
    assert equal_texts({"identical_rows": None}) == ""
