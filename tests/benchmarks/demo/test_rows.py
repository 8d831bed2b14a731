"""The rows that the README's table is made of are those of the run."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import rows as all_rows
from benchmarks.demo import rows, tables
from saccade.cli.main import main
from tests.support.chat_models import chat_model, write_prompts


def test_the_table_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chat_model(tmp_path / "model")
    quick = ["--max_new_tokens", "4", "--repeats", "2", "--device", "cpu", "--dtype", "float64"]
    quick += ["--prompts", write_prompts(tmp_path / "p.jsonl", [{"prompt": "hello"}, {"prompt": "two and two?"}])]
    assert main(["compare", "model", "--decoders", "prompt_lookup", "transformers", *quick]) == 0
    (run,) = (tmp_path / "runs" / "compare").iterdir()
    monkeypatch.setattr(all_rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["rows", str(run)])
    for _ in range(2):  # the second time replaces
        rows.main()
    kept = [json.loads(line) for line in (tmp_path / "results" / "demo.jsonl").read_text().splitlines()]
    found = {row["name"]: row for row in json.loads((run / "decoding.json").read_text()) if row["category"] is None}
    assert [row["method"] for row in kept] == list(found)
    for row in kept:
        assert row["value"] == found[row["method"]]["speedup"]
        assert row["ms_per_token"] == found[row["method"]]["ms_per_token"]
        assert (row["identical_rows"], row["runs"]) == (row["rows"], 2)
        assert str(tmp_path) not in json.dumps(row)
    text = tables.demo()
    assert "| transformers `generate` | " in text
    assert "(4-bit weights, dequantised), float64, 2 prompts, up to 4 new, greedy, 2 passes; " in text


def test_no_run_and_no_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(all_rows, "RESULTS", tmp_path)
    assert tables.demo() == "No rows yet: run `python -m benchmarks.demo.rows`."
    monkeypatch.setattr(sys, "argv", ["rows", "runs/none"])
    with pytest.raises(SystemExit) as end:
        rows.main()
    assert end.value.code == 2
    assert "there is no runs/none" in capsys.readouterr().err
