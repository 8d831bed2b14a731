"""The layer-skip benchmark on a model of a few thousand weights: its rows agree with what was measured."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.decoding import layer_skip
from tests.support.chat_models import chat_model

ARGUMENTS = (
    "--device", "cpu", "--trials", "3", "--finalists", "1", "--prompts", "2", "--prompt-length", "12", "--new-tokens",
    "8", "--runs", "1",
)  # fmt: skip
METHODS = {
    "Autoregressive", "SelfSpeculative", "SelfSpeculative, skip auto", "SelfSpeculative, up to 12, adaptive",
    "SelfSpeculative, 2 drafted",
}  # fmt: skip


def measured(monkeypatch, *arguments: str) -> list[dict]:
    rows: list[dict] = []
    monkeypatch.setattr(layer_skip, "replace", rows.extend)
    monkeypatch.setattr(layer_skip, "LENGTHS", (2,))
    monkeypatch.setattr(layer_skip, "round_times", partial(layer_skip.round_times, repeats=2))
    monkeypatch.setattr("sys.argv", ["layer_skip", *arguments, *ARGUMENTS])
    layer_skip.main()
    return rows


@pytest.mark.filterwarnings("ignore:saccade. SelfSpeculative")
def test_rows(inside, monkeypatch, capsys):
    model = "runs/demo-draft/latest/model"
    rows = measured(monkeypatch, "--model", model, "--label", "tiny", "--temperatures", "0", "0.7")
    assert len(rows) == 2 * 2 * len(METHODS)  # temperatures, metrics, methods
    assert {row["method"] for row in rows} == METHODS
    for row in rows:
        sampled = "sampling at temperature 0.7" in row["case"]
        assert row["identical_rows"] == (None if sampled else row["rows"])  # greedy self-speculation is lossless
        assert ("E" in row) == (row["drafted_per_token"] > 0)
        if "E" in row:
            assert row["predicted"] == pytest.approx(row["E"] / (row["K"] * row["c"] + row["v"]))
            assert 1 <= row["E"] <= row["K"] + 1
        if row["method"] == "SelfSpeculative" and row["metric"] == "speedup":
            assert row["over_search"] == pytest.approx(row["value"] / row["search_speedup"])
    assert "tiny" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:saccade. SelfSpeculative")
def test_rows_of_a_chat_model(tmp_path, monkeypatch):
    model = chat_model(tmp_path / "model", context=1024, layers=3)
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(f'{{"prompt": "hello {number}"}}\n' for number in range(4)))
    rows = measured(monkeypatch, "--model", model, "--label", "tiny chat", "--files", str(file))
    assert {row["method"] for row in rows} == METHODS
    assert {row["benchmark"] for row in rows} == {"layer_skip_chat"}
    assert all("tiny chat, batch 1, up to 8 new tokens, 2 asked prompts in chat form" in row["case"] for row in rows)
    assert all(row["identical_rows"] == 2 for row in rows)


def test_a_model_that_is_not_there(monkeypatch):
    monkeypatch.setattr("sys.argv", ["layer_skip", "--model", "nowhere", "--label", "x"])
    with pytest.raises(
        SystemExit, match=r"^--model must be a folder with a model, got nowhere: give an exported one, RUN/model\.$"
    ):
        layer_skip.main()
