"""The comparison of two trees: this tree with itself, and with a folder that is not a checkout."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks.decoding import before_after

SMALL = ("--prompts", "2", "--prompt-length", "12", "--new-tokens", "6", "--runs", "1")
MODEL = "runs/demo-draft/latest/model"


def test_rows(inside, monkeypatch, capsys):
    rows: list[dict] = []
    monkeypatch.setattr(before_after, "replace", rows.extend)
    decoded, made = before_after.decoded, {}

    def once(tree, place, asked):
        """Starting a process takes longer than the rest: both trees are this one, so one process is enough."""
        made[tree] = made.get(tree) or decoded(tree, place, asked)
        return made[tree]

    monkeypatch.setattr(before_after, "decoded", once)
    monkeypatch.setattr("sys.argv", ["before_after", str(before_after.ROOT), MODEL, *SMALL])
    before_after.main()
    assert [(row["method"], row["metric"]) for row in rows] == [
        (method, metric)
        for method in ("Autoregressive", "PromptLookup", "SelfSpeculative")
        for metric in ("tokens_per_second_before", "tokens_per_second_after", "after_over_before")
    ]
    for row in rows:
        assert (row["identical_rows"], row["rows"], row["runs"]) == (2, 2, 1)
        assert row["spread"]["min"] > 0
    assert list(made) == [before_after.ROOT]
    assert "tokens/s before" in capsys.readouterr().out


def test_differences_are_told(monkeypatch):
    def run(speed: float, *tokens: int) -> dict:
        return {"PromptLookup": {"tokens": [[token] for token in tokens], "tokens_per_second": speed}}

    made = before_after.rows_of("case", [run(10, 1, 2), run(20, 1, 2)], [run(5, 1, 3), run(30, 1, 3)])
    assert made[2]["spread"] == {"min": 0.5, "median": 1.0, "max": 1.5}
    assert [row["identical_rows"] for row in made] == [1, 1, 1]


@pytest.mark.parametrize(
    ("status", "out", "err", "message"),
    [
        (
            1,
            "",
            "Traceback:\nImportError: no Sampling\n",
            r"failed \(ImportError: no Sampling\): see that it is a checkout",
        ),
        (1, "", "", r"failed \(it printed nothing\)"),
        (
            0,
            json.dumps({"package": "/elsewhere/inference"}),
            "",
            "imported /elsewhere/inference: see that it has a folder",
        ),
    ],
)
def test_a_process_that_fails_or_imports_another_tree_is_refused(tmp_path, monkeypatch, status, out, err, message):
    """`test_rows` starts a real one, whose answer names the tree that it was asked for."""
    ended = subprocess.CompletedProcess([], status, out, err)
    monkeypatch.setattr(before_after.subprocess, "run", lambda *_, **__: ended)
    (tmp_path / "tree" / "inference").mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"^Decoding with .*tree {message}"):
        before_after.decoded(tmp_path / "tree", tmp_path / "place", {})
    assert (tmp_path / "place" / "saccade" / "inference").resolve() == tmp_path / "tree" / "inference"
