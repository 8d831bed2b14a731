"""T2DR's study: rows are paired by training seed, and a study that cannot be compared ends before it begins."""

import importlib
import json
import sys

import pytest

from benchmarks.t2dr.study import GROUPS, figure, study_rows

DATA = "digits"


def result(arm, seed, accuracy, device="a"):
    return {
        "origin": {"device": device, "dirty": False, "commit": arm, "versions": {}, "date": "", "threads": 1},
        "arm": arm, "seed": seed, "epochs": 12, "generator_seed": None, "conditions": {},
        "groups": {group: {"accuracy": [accuracy - 0.01, accuracy + 0.01]} for group in GROUPS},
        "fit_seconds": 1.0, "seconds": 2.0,
    }  # fmt: skip


def test_rows_are_paired_by_seed_and_name_where_they_come_from():
    runs = [
        ("T2DR", 1, 0.90),
        ("T2DR", 2, 0.80),
        ("late fusion, zero fill", 2, 0.75),
        ("late fusion, zero fill", 1, 0.83),
    ]
    results = [result(*run, device="ab"[place % 2]) for place, run in enumerate(runs)]
    rows = {(row["method"], row["case"]): row for row in study_rows(results, DATA)}
    case = f"{DATA}, mean of A, B, C, 2 training seeds x 2 mask seeds"
    assert rows["T2DR", case]["mean"] == pytest.approx(0.85)
    mean, low, high = rows["late fusion, zero fill", case]["t2dr_minus_this"]
    assert mean == pytest.approx(0.06)  # of 0.07 and 0.05
    assert high - mean == pytest.approx(mean - low) == pytest.approx(12.706 * 0.01, rel=1e-3)
    assert rows["late fusion, zero fill", case]["commit"] == "late fusion, zero fill"
    assert set(rows["T2DR", case]["device"].split("; ")) == {"a", "b"}
    assert figure(results, DATA) is not None


def test_one_seed_gives_rows_and_no_figure():
    results = [result("T2DR", 1, 0.9), result("LNLN-like", 1, 0.8)]
    assert not any("t2dr_minus_this" in row for row in study_rows(results, DATA))
    assert figure(results, DATA) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arms", "LNLN-like"], "--arms must have T2DR, or "),
        (["--arms", "LNLN"], "argument --arms: invalid choice: 'LNLN'"),
        (["--read"], "--arms must have T2DR, or "),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_work(arguments, said, monkeypatch, capsys, tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text(json.dumps(result("late fusion, zero fill", 1, 0.8) | {"epochs": 25, "generator_seed": 3}) + "\n")
    monkeypatch.setattr(sys, "argv", ["t2dr_study", "--raw", str(raw), *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("benchmarks.t2dr.study").main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
