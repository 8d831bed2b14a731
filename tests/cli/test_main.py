"""What the command says about itself, and how quickly."""

import gc
import re
import subprocess
import sys

import pytest

from saccade.cli.config_lookup import find_config, packaged_configs, resolve_config_arguments
from saccade.cli.main import main
from tests.support.processes import TIME_LIMIT, environment


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], []])
def test_quick_answers_do_not_load_torch(arguments):
    code = f"import sys; from saccade.cli.main import main; main({arguments!r}); assert 'torch' not in sys.modules"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout


def test_version(saccade):
    assert re.fullmatch(r"saccade \d+\.\d+\.\d+\S*\n", saccade("--version").out)


def test_help_names_commands_configs_and_the_plus_form(saccade):
    text = saccade("--help").out
    for word in ("fit", "validate", "doctor", "search-layers", "lm/tiny.yaml", "--trainer.callbacks+=", "callbacks+:"):
        assert word in text


def test_help_of_fit_explains_our_options(saccade):
    run = saccade("fit", "--help")
    assert run.status == 0
    for word in ("--name", "--runs_folder", "--ckpt_path", "--trainer.callbacks+="):
        assert word in run.out


def test_module_door():
    answer = subprocess.run(
        [sys.executable, "-m", "saccade.cli.main", "--version"], capture_output=True, text=True, check=False
    )
    assert answer.stdout.startswith("saccade ")


def test_packaged_config_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("lm/tiny.yaml") == str(packaged_configs()["lm/tiny.yaml"])
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "tiny.yaml").write_text("seed_everything: 1\n")
    assert find_config("lm/tiny.yaml") == "lm/tiny.yaml", "the user's own file wins"


def test_only_config_arguments_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(packaged_configs()["lm/tiny.yaml"])
    given = ["fit", "-c", "lm/tiny.yaml", "--config=lm/tiny.yaml", "--name", "lm/tiny.yaml"]
    assert resolve_config_arguments(given) == ["fit", "-c", path, f"--config={path}", "--name", "lm/tiny.yaml"]


def test_main_takes_the_process_arguments(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["saccade", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("saccade ")


@pytest.mark.parametrize(("rank", "expected"), [(None, ["saccade: doctor: loading PyTorch ..."]), ("1", [])])
def test_the_first_sign_comes_before_torch(rank, expected):
    """Once, on the first rank; a process that has loaded the command already says nothing."""
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'lightning', 'transformers'): raise SystemExit(3)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from saccade.cli.main import main\n"
        "main(['doctor'])\n"
    )
    kept = environment() | ({} if rank is None else {"LOCAL_RANK": rank})
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=False, timeout=TIME_LIMIT
    )
    assert (done.returncode, done.stderr.splitlines()) == (3, expected)


def test_on_a_terminal_the_first_sign_goes_away_again(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delitem(sys.modules, "saccade.cli.commands.doctor", raising=False)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "saccade: doctor: loading PyTorch ...\r\x1b[K"
    assert gc.isenabled()
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == ""
