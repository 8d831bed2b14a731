"""`saccade export` writes the folder that fit wrote, from the checkpoint alone, or says in one line why not."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from saccade.cli.main import main
from tests.support.processes import TIME_LIMIT, environment
from tests.support.trained import QUICK

RUN = Path("runs/demo-draft/latest")
CLIPS = [
    "--config", "t2dr/demo.yaml", "--config", "t2dr/late_fusion.yaml", "--data.generator=SyntheticSentiment",
    "--data.generator.clips=[16,8,8]", "--data.batch_size=8", "--model.width=8", "--trainer.max_epochs=1",
]  # fmt: skip
SCENES = [
    "--config", "video/llava-tiny.yaml", "--data.scenes=4", "--data.validation_scenes=1", "--data.test_scenes=1",
    "--model.slot_scenes=0", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
]  # fmt: skip
PAIRS = {
    "data": {
        "class_path": "saccade.datamodules.ChunkPool",
        "init_args": {"sources": ["asyncio", "email"], "target": "logging", "chunk_size": 8, "passes": 1,
                      "max_pairs_per_package": 32},
    },
    "trainer": {"max_steps": 2, "limit_val_batches": 0},
}  # fmt: skip


def content(folder: Path) -> dict[str, object]:
    """The files of a folder: JSON as values, all others as bytes."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def export(*arguments: str) -> int:
    try:
        return main(["export", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def settings_of(kind: str, place: Path) -> list[str]:
    """Arguments of a fit of a few steps."""
    if kind == "a trained model, adapted in low precision":
        base = place / "base"
        shutil.copytree((RUN / "model").resolve(), base, dirs_exist_ok=True)
        generation = json.loads((base / "generation_config.json").read_text())
        (base / "generation_config.json").write_text(json.dumps(generation | {"temperature": 0.5, "do_sample": True}))
        return [
            "--config", "lm/tiny.yaml", f"--model.path={base}", "--model.config=null", "--model.lora.rank=2",
            "--model.lora.target_modules=[lm_head,q_proj]", "--trainer.precision=bf16-true", "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
        ]  # fmt: skip
    if kind in (fixed := {"LateFusion": CLIPS, "VisionLanguageModel": SCENES}):
        return fixed[kind]
    small = {"Retriever": {"rows": 512, "width": 8}, "Reranker": {"width": 8}}[kind]
    model = {"class_path": f"saccade.modules.{kind}", "init_args": small}
    (place / "pairs.yaml").write_text(yaml.safe_dump({"model": model, **PAIRS}))
    return ["--config", "pairs.yaml"]


KINDS = ["LateFusion", "Retriever", "Reranker", "VisionLanguageModel", "a trained model, adapted in low precision"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_the_one_of_fit(inside, kind, monkeypatch):
    # tracing takes seconds and is tested with the modules: here the weights stand for the program
    monkeypatch.setattr("saccade.modules.multimodal.export._program", lambda model, example: model.state_dict())
    monkeypatch.setattr("torch.export.save", lambda weights, path: save_file(weights, path))
    name = kind.split()[-1]
    assert main(["fit", *settings_of(kind, inside), "--name", name, *QUICK]) == 0
    assert export("last", "--name", name) == 0
    run = (inside / "runs" / name / "latest").resolve()
    assert content(run / "model")
    assert content(run / "model-last") == content(run / "model")


def test_a_language_model_that_was_trained_from_nothing(inside, capsys):
    for _ in range(2):  # the second time replaces the folder of the first
        assert export(str(RUN / "checkpoints" / "last.ckpt")) == 0
    out = capsys.readouterr().out
    assert "(step 10, epoch 0) is exported to" in out
    assert content(RUN / "model-last") == content(RUN / "model")
    shutil.rmtree(RUN.resolve() / "model-last")
    assert export("best", "--name", "demo-draft", "--to", "best-model") == 0
    assert "model.safetensors" in content(Path("best-model"))
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []
    shutil.rmtree("best-model")


def test_a_module_of_ones_own(saccade, toy):
    fit = saccade("fit", "--config", "toy.yaml", "--model.width=4")
    run = saccade("export", str(fit.folder / "checkpoints" / "best.ckpt"))
    assert run.status == 0, run.text
    assert content(fit.folder / "model-best").keys() == {"layer.pt"}
    trained = torch.load(fit.folder / "model" / "layer.pt", weights_only=True)
    assert trained.keys() == torch.load(fit.folder / "model-best" / "layer.pt", weights_only=True).keys()


@pytest.fixture
def checkpoints(saccade, toy):
    """Files that are not what they should be, beside a good one."""
    fit = saccade("fit", "--config", "toy.yaml")
    good = fit.folder / "checkpoints" / "last.ckpt"
    shutil.copy(good, toy / "good.ckpt")
    (toy / "half.ckpt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (toy / "empty.ckpt").touch()
    saved = torch.load(good, weights_only=True)
    weights, settings = saved["state_dict"], saved["hyper_parameters"]
    made = {
        "weights": saved["state_dict"],
        "python": saved | {"hyper_parameters": {}},
        "other": saved | {"hyper_parameters": settings | {"_class_path": "no.such.Model"}},
        "evil": saved | {"hyper_parameters": {"_class_path": "subprocess.Popen", "args": "touch evil"}},
        "mute": saved | {"hyper_parameters": {"_class_path": "tests.cli.toy.ToyModelWithoutValidation"}},
        "wide": saved | {"hyper_parameters": settings | {"width": 5}},
        "bad": saved | {"hyper_parameters": settings | {"width": 0}},
        "short": saved | {"state_dict": {name: weights[name] for name in list(weights)[1:]}},
        "objects": saved | {"mine": Path("x")},
    }
    for name, content in made.items():
        torch.save(content, toy / f"{name}.ckpt")
    with zipfile.ZipFile(toy / "zip.ckpt", "w") as file:
        file.writestr("a", "b")
    (toy / "sharded").mkdir()
    (toy / "sharded" / ".metadata").touch()
    (toy / "full").mkdir()
    (toy / "full" / "thesis.txt").touch()
    (toy / "model").mkdir()
    (toy / "model" / "config.json").touch()
    return toy


MISTAKES = {
    "no checkpoint": ([], "CKPT must be given, got none"),
    "a missing file": (["nowhere.ckpt"], "CKPT must be an existing checkpoint, got nowhere.ckpt"),
    "a file that is cut off": (["half.ckpt"], "CKPT must be a complete checkpoint, got half.ckpt"),
    "an empty file": (["empty.ckpt"], "CKPT must be a complete checkpoint, got empty.ckpt"),
    "text": (["toy.yaml"], "CKPT must be a complete checkpoint, got toy.yaml"),
    "an archive": (["zip.ckpt"], "CKPT must be a complete checkpoint, got zip.ckpt"),
    "weights alone": (["weights.ckpt"], "CKPT must be a checkpoint of a run, got another file of torch, weights.ckpt"),
    "trained in Python": (["python.ckpt"], "CKPT must name the class of its module"),
    "a class that is gone": (["other.ckpt"], "CKPT needs the class no.such.Model, which cannot be imported"),
    "a class that is no module": (["evil.ckpt"], "CKPT must name a LightningModule, got subprocess.Popen"),
    "a module without export": (["mute.ckpt"], "CKPT must be one of a module with save_pretrained, got"),
    "other settings": (["wide.ckpt"], "CKPT must have the weights of ToyModel, got others (1 have other shapes"),
    "refused settings": (["bad.ckpt"], "cannot be built from the settings in it (width must be at least 1, got 0"),
    "a weight that is missing": (["short.ckpt"], "CKPT must have the weights of ToyModel, got others (1 are missing"),
    "objects": (["objects.ckpt"], "CKPT must hold plain values and tensors, got objects of other classes"),
    "a run's folder": (["runs"], "CKPT must be a checkpoint, got the folder runs"),
    "a model's folder": (["model"], "CKPT must be a checkpoint, got model, which is a model folder already"),
    "shards": (["sharded"], "consolidate_checkpoint sharded"),
    "last of nothing": (["last"], "--name must be given with last, got none"),
    "last of a run that is not": (["last", "--name", "nobody"], "CKPT last needs a run with last.ckpt, got none in"),
    "a name beside a path": (["good.ckpt", "--name", "toy"], "--name must be given with last or best only, got toy"),
    "a folder in use": (["good.ckpt", "--to", "full"], "--to must be a new or empty folder, got full"),
    "a file as folder": (["good.ckpt", "--to", "toy.yaml"], "--to must be a folder, got the file toy.yaml"),
    "a folder in a file": (["good.ckpt", "--to", "toy.yaml/out"], "--to must be in a folder that can be written to"),
    "a misspelt option": (["good.ckpt", "--too", "x"], "--too"),
    "an abbreviated option": (["good.ckpt", "--runs", "x"], "--runs x: did you mean --runs_folder?"),
}


def test_mistakes_are_one_line_and_write_nothing(saccade, checkpoints):
    before = sorted(checkpoints.rglob("*"))
    for mistake, (arguments, expected) in MISTAKES.items():
        run = saccade("export", *arguments)
        assert run.status == 2, (mistake, run.text)
        (line,) = run.err.splitlines()
        assert line.startswith("saccade: error: "), (mistake, line)
        assert expected in line, (mistake, line)
        assert sorted(checkpoints.rglob("*")) == before, mistake


def test_a_place_that_cannot_be_written(saccade, checkpoints):
    (checkpoints / "closed").mkdir(mode=0o500)
    if os.access(checkpoints / "closed", os.W_OK):
        pytest.skip("this user may write anywhere")
    run = saccade("export", "good.ckpt", "--to", "closed/out")
    assert run.status == 2
    assert "--to must be in a folder that can be written to, got closed/out" in run.err


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_a_folder_of_deepspeed_without_deepspeed(saccade, toy):
    (toy / "ds.ckpt" / "checkpoint").mkdir(parents=True)
    torch.save({}, toy / "ds.ckpt" / "checkpoint" / "mp_rank_00_model_states.pt")
    run = saccade("export", "ds.ckpt")
    assert run.status == 2
    assert "the package deepspeed that joins its parts is not installed: install it" in run.err


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_a_folder_of_deepspeed(inside, tmp_path, stage):
    pytest.importorskip("deepspeed")
    file, folder = RUN.resolve() / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    script = [sys.executable, "-m", "tests.cli.commands.deepspeed_script", str(file), str(stage), str(folder)]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert export(str(folder)) == 0
    assert content(tmp_path / "model-last") == content(RUN / "model")
    for path in folder.rglob("*optim_states.pt"):
        path.unlink()
    assert export(str(folder), "--to", str(tmp_path / "other")) == 2
    assert not (tmp_path / "other").exists()
