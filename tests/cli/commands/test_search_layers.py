"""`saccade search-layers`: arguments from the function, errors in one line, a file that the decoder takes."""

import json

import pytest

from saccade.cli.main import main

MODEL = "runs/demo-draft/latest/model"
QUICK = (
    "--trials=4", "--finalists=2", "--repeats=1", "--rounds=1", "--max_prompts=2", "--prompt_length=16",
    "--max_new_tokens=8", "--device=cpu",
)  # fmt: skip


def test_writes_a_skip_file_for_the_decoder(inside, capsys):
    assert main(["search-layers", "--model", MODEL, "--output", "found/skip_layers.json", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "the draft skips the attention of layers" in out
    assert "found/skip_layers.json" in out
    found = json.loads((inside / "found" / "skip_layers.json").read_text())
    assert {"attention", "mlp"} <= set(found)
    arguments = ["validate", "--config", "lm/tiny.yaml", "--config", "decoder/self_speculative.yaml", "--name", "found"]
    arguments += [f"--model.path={MODEL}", "--model.config=null", "--trainer.accelerator=cpu"]
    arguments += ["--trainer.limit_val_batches=1", "--trainer.callbacks.max_prompts=1"]
    arguments += ["--trainer.callbacks.max_new_tokens=4"]
    skip = '{"s": {"class_path": "SelfSpeculative", "init_args": {"skip": "found/skip_layers.json"}}}'
    assert main([*arguments, f"--trainer.callbacks.decoders={skip}"]) == 0


def test_mistakes_are_one_line(inside, capsys):
    for arguments, expected in (
        (["--model", "no/such/folder"], "no/such/folder"),
        ([], "model"),
        (["--model", MODEL, "--trails=3"], "--trails=3: did you mean --trials?"),
        (["--model", MODEL, *QUICK, "--trials=0"], "trials must be at least 1"),
        (["--model", MODEL, "--trial=3"], "--trial=3: did you mean --trials?"),  # no abbreviations
        (["--model", MODEL, "--prompts", "4"], "prompts must be files of prompts, got 4: write max_prompts=4"),
    ):
        assert main(["search-layers", *arguments]) == 2
        err = capsys.readouterr().err
        (line,) = [line for line in err.splitlines() if line.startswith("saccade: error: ")]
        assert expected in line
        assert "Traceback" not in err


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["search-layers", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Search the sub-layers" in out
    assert "--prompt_length" in out
    assert "Tokens of each prompt" in out
