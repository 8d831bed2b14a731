"""Wrong arguments on the command lines of benchmarks end them at once with one line."""

import importlib
import sys

import pytest

COUNTS = {
    "compression.planted_heads": "--seeds",
    "decoding.coupling": "--count",
    "decoding.decode": "--runs",
    "decoding.layer_skip": "--trials",
    "decoding.speculation": "--count",
    "t2dr.study": "--epochs",
    "text.preparation": "--sizes",
    "trait.study": "--workers",
    "trait.throughput": "--budget",
    "trait.worlds": "--seeds",
    "trait.vector_search": "--vectors",
    "video.acceptance": "--draft-length",
    "video.relevance": "--neighbours",
    "video.speed": "--prompts",
    "video.training": "--videos",
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


def test_a_study_of_t2dr_does_not_mix_its_runs(monkeypatch, capsys, tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"arm": "T2DR", "seed": 1111, "epochs": 12, "generator_seed": null}\n')
    monkeypatch.setattr(sys, "argv", ["t2dr_study", "--raw", str(raw)])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("benchmarks.t2dr.study").main()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "--raw must have runs of 25 epochs and generator seed 3, got " in told
    assert told.endswith("with 12 and None: name another file.\n")


def test_a_study_of_digits_needs_their_file(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["t2dr_study", "--data", "digits"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("benchmarks.t2dr.study").main()
    assert end.value.code == 2
    assert "--features must be a file, got None: make it with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--temperature=-1"], "--temperature must be at least 0 and finite, got -1.0: 0 is greedy."),
        (["--temperature=nan"], "--temperature must be at least 0 and finite, got nan: 0 is greedy."),
        (["--batch=5", "--prompts=12"], "--prompts must be a multiple of --batch (5), got 12: change one of them."),
    ],
)
def test_decoding_that_cannot_be_measured(given, wanted, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["decode", "--model", "nowhere", *given])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("benchmarks.decoding.decode").main()
    assert end.value.code == 2
    assert wanted in capsys.readouterr().err


PLACES = {
    "decoding.decode": ["--model"],
    "decoding.layer_skip": ["--model"],
    "decoding.speculation": ["--model", "--draft", "--skip", "--prompts"],
    "text.preparation": ["--texts", "--datasets", "--work"],
    "trait.study": ["--folder"],
    "video.acceptance": ["--target", "--draft"],
    "video.relevance": ["--target"],
    "video.speed": ["--target", "--draft"],
}


@pytest.mark.parametrize(("name", "argument"), [(name, one) for name, all_of in PLACES.items() for one in all_of])
def test_what_is_not_there_is_told_at_once(name, argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, f"{argument}=runs/nobody/latest/model"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 2
    assert f"argument {argument}: there is no runs/nobody/latest/model: name an existing one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("t2dr.study", ["--seeds"], "argument --seeds: expected at least one argument"),
        ("trait.study", ["--seeds"], "argument --seeds: expected at least one argument"),
        ("trait.study", ["--targets", "crann"], "argument --targets: invalid choice: 'crann'"),
        ("trait.study", ["--methods", "traits"], "argument --methods: invalid choice: 'traits'"),
    ],
)
def test_what_is_not_there_is_not_studied(name, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main()
    assert end.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
