"""The layer-skip benchmark on a model of a few thousand weights: its rows agree with what was measured."""

from __future__ import annotations

import pytest

from benchmarks.decoding import layer_skip


def test_rows(inside, monkeypatch, capsys):
    rows: list[dict] = []
    monkeypatch.setattr(layer_skip, "replace", rows.extend)
    monkeypatch.setattr(layer_skip, "LENGTHS", (2,))
    arguments = (
        "--model", "runs/demo-draft/latest/model", "--label", "tiny", "--device", "cpu", "--trials", "3",
        "--finalists", "1", "--prompts", "2", "--prompt-length", "12", "--new-tokens", "8", "--runs", "1",
        "--temperatures", "0", "0.7",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["layer_skip", *arguments])
    layer_skip.main()
    assert len(rows) == 2 * 2 * 3  # temperatures, metrics, methods
    assert {row["method"] for row in rows} == {
        "Autoregressive", "SelfSpeculative, up to 12, adaptive", "SelfSpeculative, 2 drafted",
    }  # fmt: skip
    for row in rows:
        sampled = "sampling at temperature 0.7" in row["case"]
        assert row["identical_rows"] == (None if sampled else row["rows"])  # greedy self-speculation is lossless
        if row["method"] != "Autoregressive":
            assert row["predicted"] == pytest.approx(row["E"] / (row["K"] * row["c"] + row["v"]))
            assert 1 <= row["E"] <= row["K"] + 1
    assert "tiny" in capsys.readouterr().out


def test_a_model_that_is_not_there(monkeypatch):
    monkeypatch.setattr("sys.argv", ["layer_skip", "--model", "nowhere", "--label", "x"])
    with pytest.raises(
        SystemExit, match=r"^--model must be a folder with a model, got nowhere: give an exported one, RUN/model\.$"
    ):
        layer_skip.main()
