"""The commands of the demo, in their order, with the real model and without; every command takes what it is given."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.smollm2 import UnavailableError
from saccade.cli.config_lookup import packaged_configs
from saccade.datamodules.prompts.conversation import BUILT_IN, read_conversations
from tests.support.processes import ROOT

demo = importlib.import_module("demo.__main__")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str | None]]:
    """The commands that are run, each with its number of threads; `compare` fails."""
    found: list[tuple[list[str], str | None]] = []

    def run(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        words = command[command.index("saccade.cli.main") + 1 :]
        found.append((words, env.get("OMP_NUM_THREADS")))
        return SimpleNamespace(returncode=3 * (words[0] == "compare"))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return found


def test_with_the_model(commands, monkeypatch, capsys):
    monkeypatch.setattr(demo, "model_folder", lambda folder: folder)
    assert demo.main(["--trainer.max_steps=5"]) == 3
    assert [words[0] for words, _ in commands] == ["generate", "fit", "compare"]
    generate, fit, compare = (words for words, _ in commands)
    assert generate[1] == fit[fit.index("--model.path") + 1] == compare[1] == str(demo.MODEL)
    answers = generate[generate.index("--output") + 1]
    assert f"--data.files=[{answers}]" in fit
    assert "--trainer.max_steps=5" in fit
    assert "--trainer.max_steps=5" not in generate + compare
    assert compare[compare.index("--draft") + 1] == "runs/draft/latest/model"
    assert "saccade compare runs/models/" in capsys.readouterr().out
    assert {threads for _, threads in commands} == {None}


def test_without_the_model(commands, monkeypatch, capsys):
    def unavailable(folder: Path) -> Path:
        raise UnavailableError("there is no network")

    monkeypatch.setattr(demo, "model_folder", unavailable)
    assert demo.main(["--trainer.max_steps=5"]) == 0
    assert [words[0] for words, _ in commands] == ["fit", "fit", "search-layers", "validate"]
    assert [threads for _, threads in commands] == [None, None, "1", "1"]
    assert all(("--trainer.max_steps=5" in words) == (words[0] == "fit") for words, _ in commands)
    named = [word for words, _ in commands for word in words if word.endswith(".yaml")]
    assert set(named) <= set(packaged_configs())
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("demo: without"))
    assert "because there is no network: a small model is trained" in line


def test_the_prompts_of_the_draft_are_not_those_that_are_measured():
    own, measured = read_conversations([demo.PROMPTS]), read_conversations([BUILT_IN])
    assert not {str(each.turns) for each in own} & {str(each.turns) for each in measured}
    assert {each.category for each in own} == {each.category for each in measured}
    rows = [json.loads(line) for line in demo.PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    # no text of the measured prompts that could be retrieved
    texts = " ".join(json.dumps(each.turns) for each in measured)
    lines = [line for row in rows for line in row["prompt"].split("\n")]
    assert not [line for line in lines if len(line) > 90 and line in texts]


def test_make_demo_runs_it():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: install.*\n\t\$\(BIN\)/python -m demo \$\(DEMO_ARGS\)$", text, flags=re.MULTILINE)
