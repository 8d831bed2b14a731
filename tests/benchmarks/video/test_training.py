"""The rows of trained video models: what an untrained one tells, and what its run's log says."""

from __future__ import annotations

import json
import shutil
from datetime import datetime

import pytest

from benchmarks.video import tables, training

COMMON = ("--videos", "3", "--batch", "2", "--new-tokens", "12", "--device", "cpu")


@pytest.fixture
def rows(video_run, monkeypatch, tmp_path):
    """Rows of a run with a log and of the same without one."""
    kept: list[dict] = []
    monkeypatch.setattr(training, "replace", kept.extend)
    folders = [tmp_path / name / "20260101-000000" for name in ("logged", "plain")]
    for folder in folders:
        shutil.copytree(video_run, folder)
    (folders[0] / "logs").mkdir()
    log = folders[0] / "logs" / "metrics.csv"
    log.write_text("step,train_loss,val_loss\n19,1.5,\n39,0.25,\n39,,0.5\n")
    begun = datetime.fromtimestamp(log.stat().st_mtime - 90).astimezone()
    (folders[0] / "provenance.json").write_text(json.dumps({"date": begun.isoformat()}))
    monkeypatch.setattr("sys.argv", ["video_training", *map(str, folders), *COMMON])
    training.main()
    return kept


def test_rows(rows, monkeypatch):
    logged, plain = rows
    assert (logged["method"], logged["steps"], logged["minutes"], logged["train_loss"]) == ("logged", 40, 1.5, 0.25)
    assert (plain["method"], plain["steps"], plain["minutes"], plain["train_loss"]) == ("plain", None, None, None)
    for row in rows:
        assert row["value"] == row["slot_accuracy"] < 0.5  # untrained
        assert "qwen2_5_vl_text of 2 layers and width 64" in row["model"]
    monkeypatch.setattr(tables, "read", lambda name: rows)
    table = tables.video_training()
    assert "| 40 | 1.5 | 0.250 |" in table
    assert table.count("language part") == 2


def test_facts_are_counted(rows, video_run, monkeypatch):
    """A model that writes the clips' own captions tells all facts."""
    kept: list[dict] = []
    monkeypatch.setattr(training, "replace", kept.extend)
    monkeypatch.setattr(training.HeldOut, "text", lambda data, tokens: data.data.answer(data.items.pop(0), "test"))
    monkeypatch.setattr(training.HeldOut, "items", [0, 1, 2], raising=False)
    monkeypatch.setattr("sys.argv", ["video_training", str(video_run), *COMMON])
    training.main()
    assert (kept[0]["value"], kept[0]["slot_accuracy_interval"]) == (1.0, [1.0, 1.0])


def test_pairs_are_compared(monkeypatch):
    def row(method, value, interval, share=0.9):
        return {
            "case": "a family, 3 held-out videos of 8 tokens, greedy", "device": "cpu", "method": f"SpecVLM, {method}",
            "prune_ratio": share, "value": 4.0, "of_reference": value, "of_reference_interval": interval,
        }  # fmt: skip

    for interval, verdict in (([0.7, 0.8], "below"), ([0.94, 0.99], "above"), ([0.8, 0.99], "not told apart from")):
        rows = [
            row("none", 1.0, [1.0, 1.0], 0.0), row("random, 0.9", 0.9, [0.88, 0.92]),
            row("two_stage, 0.9", 0.75, interval), row("two_stage, 0.5", 0.1, [0.1, 0.1], 0.5),
        ]  # fmt: skip
        monkeypatch.setattr(tables, "read", lambda name, rows=rows: rows)
        assert f" {verdict} random |" in tables.video_pairs()
