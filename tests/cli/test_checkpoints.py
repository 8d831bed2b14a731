"""Settings in a checkpoint never win over the command, and never differ in silence."""

import shutil
from pathlib import Path

import pytest
import torch

from saccade.cli.checkpoint_settings import check_checkpoint, differences, is_deepspeed_folder, read_settings
from saccade.cli.errors import UsageError


def as_deepspeed_folder(checkpoint: Path, folder: Path, stage: int) -> Path:
    """The layout that Lightning's DeepSpeed strategy writes, holding the settings of a real checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    (folder / "checkpoint").mkdir(parents=True)
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    torch.save({"hyper_parameters": content["hyper_parameters"]}, folder / "checkpoint" / name)
    (folder / "latest").write_text("checkpoint")
    return folder


def test_command_wins_and_differences_are_printed(saccade):
    fit = saccade("fit", "--config", "toy.yaml", "--model.learning_rate=0.02", "--model.options={a: 1}")
    last = str(fit.folder / "checkpoints" / "last.ckpt")
    run = saccade(
        "fit", "--config", "toy.yaml", "--ckpt_path", last, "--trainer.max_epochs=3",
        "--model.learning_rate=0.5", "--model.options={a: 2}",
    )  # fmt: skip
    assert run.status == 0, run.text
    assert "learning_rate: 0.02 -> 0.5" in run.text
    assert "options.a: 1 -> 2" in run.text
    assert "betas" not in run.text, "a tuple that was saved as a list is no difference"
    assert "learning_rate: 0.5" in (run.folder / "config.yaml").read_text()
    saved = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["learning_rate"] == 0.5, "the module was built with the command's value"


def test_without_differences_nothing_is_printed(saccade):
    fit = saccade("fit", "--config", "toy.yaml")
    run = saccade("validate", "--config", "toy.yaml", "--ckpt_path", str(fit.folder / "checkpoints" / "last.ckpt"))
    assert "differ" not in run.text


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_folder_says_the_same_as_a_file(saccade, toy, stage):
    fit = saccade("fit", "--config", "toy.yaml", "--model.learning_rate=0.02")
    file = fit.folder / "checkpoints" / "last.ckpt"
    folder = as_deepspeed_folder(file, toy / "last.ckpt", stage)
    assert is_deepspeed_folder(folder)
    used = {"class_path": "tests.cli.toy.ToyModel", "init_args": {"learning_rate": 0.5, "width": 4}}
    from_file, from_folder = read_settings(file), read_settings(folder)
    assert from_file is not None
    assert from_folder is not None
    assert differences(from_folder, used) == differences(from_file, used)
    assert "learning_rate: 0.02 -> 0.5" in differences(from_folder, used)


def test_checkpoint_and_strategy_must_fit(saccade, toy):
    fit = saccade("fit", "--config", "toy.yaml")
    file = fit.folder / "checkpoints" / "last.ckpt"
    folder = as_deepspeed_folder(file, toy / "ds.ckpt", 2)
    check_checkpoint(folder, "deepspeed_stage_2")
    check_checkpoint(folder, {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"})
    check_checkpoint(file, "auto")
    for strategy in ("deepspeed_stage_3", {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}):
        with pytest.raises(UsageError, match="must be a folder that DeepSpeed wrote, got the file"):
            check_checkpoint(file, strategy)
    with pytest.raises(UsageError, match="strategy/deepspeed_stage_2"):
        check_checkpoint(folder, "ddp")
    run = saccade("fit", "--config", "toy.yaml", "--trainer.strategy=deepspeed_stage_2", "--ckpt_path", str(file))
    assert (run.status, run.new_folders) == (2, [])
    assert run.err.count("saccade: error:") == 1
    assert "Traceback" not in run.text


def test_missing_and_unreadable_checkpoints(saccade, toy):
    run = saccade("validate", "--config", "toy.yaml", "--ckpt_path", "nowhere.ckpt")
    assert (run.status, run.new_folders) == (2, [])
    assert "--ckpt_path must be an existing checkpoint, got nowhere.ckpt" in run.err
    (toy / "text.ckpt").write_text("no checkpoint")
    assert read_settings(toy / "text.ckpt") is None
    (toy / "empty").mkdir()
    assert read_settings(toy / "empty") is None
    assert not is_deepspeed_folder(toy / "empty")


def test_weights_of_another_shape_are_one_line(saccade):
    fit = saccade("fit", "--config", "toy.yaml")
    run = saccade(
        "validate", "--config", "toy.yaml", "--model.width=5", "--data.width=5",
        "--ckpt_path", str(fit.folder / "checkpoints" / "last.ckpt"),
    )  # fmt: skip
    assert run.status == 2
    assert "width: 4 -> 5" in run.text
    assert (
        "--ckpt_path must have the weights of ToyModel, got others (1 have other shapes, such as layer.weight)"
        in run.err.splitlines()[-1]
    )
    assert "Traceback" not in run.text


def test_differences_name_what_only_one_side_has():
    saved = {"_class_path": "a.B", "_instantiator": "x", "gone": 1, "same": [1, 2]}
    lines = differences(saved, {"class_path": "a.C", "init_args": {"same": (1, 2), "new": None}})
    assert sorted(lines) == ["class_path: a.B -> a.C", "gone: 1 -> (not set)", "new: (not set) -> None"]


def test_deepspeed_checkpoint_of_last_is_found(saccade, toy):
    fit = saccade("fit", "--config", "toy.yaml")
    file = fit.folder / "checkpoints" / "last.ckpt"
    folder = as_deepspeed_folder(file, toy / "tmp.ckpt", 3)
    file.unlink()
    shutil.move(folder, file)
    run = saccade("validate", "--config", "toy.yaml", "--ckpt_path", "last")
    assert run.status == 2
    assert "--ckpt_path must be a file without DeepSpeed, got its folder" in run.err
