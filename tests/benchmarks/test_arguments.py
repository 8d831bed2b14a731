"""Counts on the command lines of benchmarks."""

import importlib
import sys

import pytest

COUNTS = {
    "decode": "--runs",
    "layer_skip": "--trials",
    "t2dr_study": "--epochs",
    "trait_study": "--workers",
    "trait_throughput": "--budget",
    "trait_worlds": "--seeds",
    "vector_search": "--vectors",
    "video_acceptance": "--draft-length",
    "video_relevance": "--neighbours",
    "video_speed": "--prompts",
}


@pytest.mark.parametrize("given", ["0", "-3", "two"])
@pytest.mark.parametrize("name", COUNTS)
def test_nothing_is_measured_no_times(name, given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, f"{COUNTS[name]}={given}"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 2
    wanted = f"argument {COUNTS[name]}: must be a whole number of at least 1, got {given}"
    assert capsys.readouterr().err.splitlines()[-1].endswith(wanted)
