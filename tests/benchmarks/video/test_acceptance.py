"""The acceptance study on an untrained pair and two videos: its rows agree with what was measured."""

from __future__ import annotations

import pytest

from benchmarks.video import acceptance as video_acceptance
from benchmarks.video import tables
from saccade.inference.verification.relaxed import Strict, VisualRelaxation

COMMON = ("--videos", "3", "--batch", "2", "--new-tokens", "12", "--device", "cpu")


@pytest.fixture
def rows(monkeypatch):
    kept: list[dict] = []
    monkeypatch.setattr(video_acceptance, "replace", kept.extend)
    monkeypatch.setattr(video_acceptance, "RULES", {"strict": Strict(), "LVSpec 0.7": VisualRelaxation()})
    monkeypatch.setattr(video_acceptance, "_HALVINGS", 2)
    return kept


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["video_acceptance", *arguments])
    video_acceptance.main()


def test_rows(video_run, rows, monkeypatch, capsys):
    parts = ("--selectors", "uniform", "two_stage", "--ratios", "0.5")
    run(monkeypatch, "--target", str(video_run / "model"), *COMMON, *parts)
    methods = [row["method"] for row in rows]
    assert methods == [
        "SpecVLM, none", "SpecVLM, uniform, 0.5", "SpecVLM, two_stage, 0.5", "strict", "LVSpec 0.7",
        "random as LVSpec 0.7", "FLy+ as LVSpec 0.7",
    ]  # fmt: skip
    for row in rows[:4]:  # lossless: the texts are those of the target
        assert (row["same_texts"], row["relaxed_share"]) == (3, 0.0)
        assert row["retention_interval"] in ((1.0, 1.0), None)  # an untrained target may tell nothing
    assert rows[0]["of_reference"] == 1.0
    # without pruning the target drafts exactly what it chooses: every tree is accepted to its full depth or the limit
    assert rows[0]["value"] == pytest.approx((5 + 5 - 1) / 2, abs=0.51)
    assert rows[4]["value"] >= rows[3]["value"]
    assert {row["knob"] for row in rows[5:]} <= {0.25, 0.5, 0.75}
    assert rows[0]["videos"] == 3
    monkeypatch.setattr(tables, "read", lambda name: rows)
    table = tables.video_acceptance()
    assert table.count("| two_stage |") == table.count("| strict |") == 1
    assert f"3 held-out videos of {rows[0]['video_tokens']} tokens" in capsys.readouterr().out


def test_a_part_of_the_study(video_run, rows, monkeypatch):
    folder = str(video_run / "model")
    run(monkeypatch, "--target", folder, "--draft", folder, *COMMON, "--selectors", "--rules", "strict")
    assert [row["method"] for row in rows] == ["strict"]
    assert "smaller draft" in rows[0]["case"]


def test_drafts_have_their_whole_length(video_run, rows, monkeypatch):
    """With draft control, a pair whose drafts do not pay would accept next to nothing."""
    measured, kinds = video_acceptance.Study.measured, []

    def noted(study, decoder):
        kinds.append((type(decoder).__name__, decoder.control))
        return measured(study, decoder)

    monkeypatch.setattr(video_acceptance.Study, "measured", noted)
    parts = ("--selectors", "uniform", "--ratios", "0.5", "--rules", "strict")
    run(monkeypatch, "--target", str(video_run / "model"), *COMMON, *parts)
    assert set(kinds[1:]) == {("SpecVLM", "fixed"), ("LVSpec", "fixed")}
