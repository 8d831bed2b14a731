"""Every block of code in the README and the documentation runs as it stands.

A page's blocks are run in their order, in a folder where the paths that they name exist: ``path/to/model`` and
``path/to/draft`` are tiny trained models, and the demo's runs are there. The tutorials of one's own data (``own_*.md``)
begin in an empty folder. Commands of the README and of the tutorials run with the settings of ``lm/tiny.yaml`` on top
of those of the demo; commands of other pages, and those that need several devices, are parsed.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser
from transformers import AutoModelForCausalLM

from demo.__main__ import MODEL as DEMO_MODEL
from saccade.cli.main import main
from saccade.inference import Decoder
from saccade.inference.drafting.skip_sets import write_skip_file
from tests.docs.pages import PAGES, ROOT, Block, blocks, name_of
from tests.support.trained import QUICK

TINY_SEARCH = (
    "--trials=2", "--finalists=1", "--rounds=1", "--max_prompts=1", "--prompt_length=8", "--max_new_tokens=4",
    "--device=cpu",
)  # fmt: skip
TINY_CALLBACK = {
    "LayerSkipSearch": ("trials=2", "finalists=1", "repeats=1", "rounds=1", "max_prompts=1", "max_new_tokens=4"),
    "decoder/": ("max_prompts=2", "prompt_length=8", "max_new_tokens=8"),
    "decoding/demo.yaml": ("max_prompts=2", "prompt_length=8", "max_new_tokens=8"),
    "trait/": ("budget=2", "candidates=10"),
    "t2dr/": ("mask_seeds=1",),
}
TINY_PAIRS = [
    "--data.sources=[asyncio,email]", "--data.target=logging", "--data.max_pairs_per_package=32", "--data.chunk_size=8",
    "--data.passes=1",
]  # fmt: skip
TINY_DRAFT = [
    "--data.sequence_length=64", "--data.batch_size=1", "--trainer.max_steps=2", "--trainer.val_check_interval=1",
]  # fmt: skip
TINY_CLIPS = [
    "--data.generator=SyntheticSentiment", "--data.generator.clips=[40,16,16]", "--data.batch_size=16",
    "--model.width=8", "--model.depth=1", "--trainer.max_epochs=1",
]  # fmt: skip
TINY_VIDEOS = [
    "--data.scenes=8", "--data.validation_scenes=2", "--model.slot_scenes=1", "--model.max_answer_tokens=8",
    "--trainer.max_steps=2", "--trainer.val_check_interval=2",
]  # fmt: skip


@pytest.fixture
def reader(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """The working directory of a reader who has run the demo, or of one who begins with nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    asked = getattr(request.node, "callspec", None)
    if asked is not None and asked.params["page"].name.startswith("own_"):
        return tmp_path
    model = (place / "runs" / "demo-draft" / "latest" / "model").resolve()
    runs = [f"runs/{name}/20260101-000000/model" for name in ("demo", "draft")]
    for name in ("path/to/model", "path/to/draft", str(DEMO_MODEL), *runs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(model)
    for run in runs:
        (tmp_path / run).parents[1].joinpath("latest").symlink_to("20260101-000000")
    shutil.copytree(place / "runs" / "demo-draft", tmp_path / "runs" / "demo-draft", symlinks=True)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    network = AutoModelForCausalLM.from_pretrained(model)
    write_skip_file(tmp_path / "runs/demo/latest/skip_layers.json", network, attention=[1], mlp=[2])
    return tmp_path


@pytest.fixture(autouse=True)
def programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multimodal models are traced for the page that reads the program: it takes longer than all else on a page."""
    asked = getattr(request.node, "callspec", None)
    if asked is None or "load_exported" not in asked.params["page"].read_text(encoding="utf-8"):
        monkeypatch.setattr("saccade.modules.multimodal.base.write_program", lambda model, folder: folder.mkdir())


def command(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:  # --help and --print_config
        return int(stop.code or 0)


def saccade(arguments: list[str], run: bool) -> int:
    """Runs a command on tiny inputs, or only parses it."""
    kind = arguments[0]
    if kind.startswith("-") or "--help" in arguments or kind == "doctor":
        return command(arguments)
    if kind == "compare":  # quick enough to run on every page
        return command([*arguments, "--max_prompts=1", "--max_new_tokens=4", "--repeats=1", "--device=cpu"])
    if kind == "generate":  # greedily, the tiny model writes blanks
        return command([*arguments, "--max_prompts=8", "--max_new_tokens=8", "--device=cpu", "--temperature=2"])
    if kind == "export":  # of the run that is there
        return command([word.replace("tiny", "demo-draft") for word in arguments])
    if not run or any("strategy/" in argument for argument in arguments):
        return command([*arguments, "--print_config"])
    if kind == "search-layers":
        return command([*arguments, *TINY_SEARCH])
    tiny = [word for word in arguments if not word.startswith("--trainer.max_steps=")]
    for name in {"lm/demo.yaml", "lm/demo-draft.yaml"} & set(tiny):
        at = tiny.index(name) + 1
        tiny[at:at] = ["--config", "lm/tiny.yaml", "--model.config.head_dim=8"]
    text = " ".join(arguments)
    if "t2dr/" in text:
        tiny += TINY_CLIPS
    if "lm/draft.yaml" in text:
        tiny += TINY_DRAFT
    if "trait/" in text:
        tiny += TINY_PAIRS
    if "video/" in text:
        tiny += TINY_VIDEOS
    small = [setting for word, settings in TINY_CALLBACK.items() if word in text for setting in settings]
    return command([*tiny, *(f"--trainer.callbacks.{setting}" for setting in small), *QUICK])


def runs_commands(page: Path) -> bool:
    """Whether a page's commands are run, not only parsed."""
    return page.name == "README.md" or page.parent.name == "tutorials"


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    """Runs a block as a reader's own file would, in the names of the page's earlier ones."""
    exec(compile(block.text, block.place, "exec", dont_inherit=True), namespace)  # noqa: S102


def check_bash(block: Block) -> None:
    """Runs or checks every line; a command that this function does not know fails."""
    for line in block.text.replace("\\\n", "").splitlines():
        for words in (shlex.split(part, comments=True) for part in line.split("&&")):
            match words:
                case []:
                    continue
                case ["saccade", *arguments]:
                    assert saccade(arguments, run=runs_commands(block.page)) == 0, f"{block.place}: {line}"
                case ["make", target]:
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), line
                case ["python", "-m", module, *arguments]:
                    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
                    for other in re.findall(r"^from (benchmarks[\w.]+) import", source, flags=re.MULTILINE):
                        source += (ROOT / f"{other.replace('.', '/')}.py").read_text(encoding="utf-8")
                    assert all(f'"{word}"' in source for word in arguments if word.startswith("--")), line
                case ["pip", "install", "-c", constraints, "." | ".[retrieval]"]:
                    assert (ROOT / constraints).is_file()
                case ["python3", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"]:
                    continue
                case _:
                    pytest.fail(f"{block.place}: no test knows how to check {line!r}")


def check_yaml(block: Block) -> None:
    """Parses settings as the command does, and decoders as any other program would."""
    if set(yaml.safe_load(block.text)) == {"decoders"}:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--decoders", type=dict[str, Decoder])
        assert parser.instantiate_classes(parser.parse_string(block.text)).decoders
        return
    Path("block.yaml").write_text(block.text)
    assert saccade(["validate", "--config", "lm/tiny.yaml", "--config", "block.yaml"], run=False) == 0, block.place


def check_console(block: Block, capfd: pytest.CaptureFixture[str]) -> None:
    """Runs what stands behind a ``$`` and compares its last line; ``...`` stands for anything."""
    for chunk in block.text.split("$ ")[1:]:
        line, *expected = chunk.splitlines()
        words = shlex.split(line)
        assert words[0] == "saccade"
        capfd.readouterr()
        command(words[1:])
        said = capfd.readouterr().err.splitlines()[-len(expected) :]
        for wanted, got in zip(expected, said, strict=True):
            assert re.fullmatch(re.escape(wanted).replace(r"\.\.\.", ".*"), got), f"{block.place}: {got}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
def test_blocks_run(page: Path, reader: Path, capfd: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    checks: dict[str, Callable[[Block], None]] = {
        "bash": check_bash,
        "yaml": check_yaml,
        "console": lambda block: check_console(block, capfd),
        "json": lambda block: [json.loads(line) for line in block.text.splitlines()],
        "text": lambda block: None,
        "python": lambda block: run_python(block, namespace),
    }
    for block in blocks(page):
        if block.language.startswith("python title="):
            continue  # a file of the new decoder in CONTRIBUTING, which tests/architecture/test_new_decoder.py adds
        assert block.language in checks, f"{block.place}: name the block's language, one of {', '.join(checks)}"
        checks[block.language](block)


def test_the_checks_can_fail(reader: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("saccade fit --config lm/tiny.yaml --modle.seed=1", "make nothing", "rm -rf x"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_bash(Block(ROOT / "docs" / "index.md", 1, "bash", text))
    with pytest.raises(AssertionError):
        check_yaml(Block(ROOT / "docs" / "index.md", 1, "yaml", "trainer: {max_stesp: 3}"))
    with pytest.raises(AssertionError):
        check_console(Block(ROOT / "README.md", 1, "console", "$ saccade nonsense\nsaccade: all is well\n"), capfd)
