"""Whatever ends a fit, what was trained is saved, and one line says how to go on."""

import torch
import yaml

from saccade.callbacks.checkpoints.run_checkpoints import LastCheckpoint


def last(folder) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_an_error_in_the_middle_saves_the_steps_before(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--model.fail=later")
    assert run.status == 1
    assert last(run.folder)["global_step"] == 6
    assert run.err.splitlines()[-1].endswith(
        f"Step 6 is saved in {run.folder.absolute()}/checkpoints/last.ckpt: continue with --ckpt_path last."
    )
    resumed = saccade("fit", "--config", "toy.yaml", "--ckpt_path=last")
    assert last(resumed.folder)["global_step"] == 8


def test_a_metric_that_no_validation_has_logged_yet(saccade):
    run = saccade(
        "fit", "--config", "toy.yaml", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_accuracy"
    )
    assert run.status == 2
    assert "Traceback" not in run.text
    assert "val_accuracy" in run.err.splitlines()[-1]
    assert last(run.folder)["global_step"] == 4


def test_an_error_in_a_loader_process_is_its_line(saccade, toy):
    settings = yaml.safe_load((toy / "toy.yaml").read_text())
    settings["data"] = {"class_path": "tests.cli.toy.BrokenData", "init_args": {"num_workers": 1}}
    (toy / "toy.yaml").write_text(yaml.safe_dump(settings))
    run = saccade("fit", "--config", "toy.yaml")
    assert run.status == 2
    assert run.err.splitlines()[-1].startswith(
        "saccade: error: clips.jsonl line 9 names c.mp4, which is cut off. Step 2"
    )
    assert last(run.folder)["global_step"] == 2


def test_save_every_steps(saccade, toy, monkeypatch):
    """What a kill would leave: the error at step 7 itself saves nothing here."""
    monkeypatch.setattr(LastCheckpoint, "on_exception", lambda *_: None)
    run = saccade(
        "fit", "--config", "toy.yaml", "--model.fail=later", "--save_every=2", "--trainer.limit_val_batches=0"
    )
    assert run.status == 1
    assert last(run.folder)["global_step"] == 6


def test_save_every_is_refused_in_one_line(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--save_every=often")
    assert (run.status, run.new_folders) == (2, [])
    assert "save_every must be a number of steps or a time above 0, got 'often'" in run.err


def test_the_users_checkpoints_lie_where_last_and_best_look(saccade):
    mine = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine")
    run = saccade("fit", "--config", "toy.yaml", *mine)
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "mine.ckpt",
    ]
    best = (
        "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.filename=best",
        "--trainer.callbacks.save_top_k=1",
    )
    run = saccade("fit", "--config", "toy.yaml", *best, "--trainer.callbacks.monitor=val_loss")
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_checkpoint_that_cannot_be_written_is_one_line(saccade, toy, monkeypatch):
    def full(obj, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run = saccade("fit", "--config", "toy.yaml")
    assert run.status == 2
    assert "checkpoints/best.ckpt (No space left on device): choose a folder" in run.err.splitlines()[-1]
    assert "Traceback" not in run.text


def test_nothing_left_of_max_time_or_max_steps_is_said(saccade, toy):
    saccade("fit", "--config", "toy.yaml")
    newest = (toy / "runs" / "toy" / "latest").resolve()
    run = saccade("fit", "--config", "toy.yaml", "--ckpt_path=last")
    assert run.status == 0
    assert "no step was trained: the checkpoint has reached --trainer.max_epochs=2; raise it" in run.err
    assert (toy / "runs" / "toy" / "latest").resolve() == newest, "a fit that trained nothing is not the latest"


def test_nothing_left_is_said_without_checkpoints_too(saccade, toy):
    saccade("fit", "--config", "toy.yaml")
    newest = (toy / "runs" / "toy" / "latest").resolve()
    run = saccade("fit", "--config", "toy.yaml", "--ckpt_path=last", "--trainer.enable_checkpointing=false")
    assert "no step was trained" in run.err
    assert (toy / "runs" / "toy" / "latest").resolve() == newest


def test_max_time_counts_all_parts(saccade, toy):
    timed = ("fit", "--config", "toy.yaml", "--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:01")
    saccade(*timed)
    run = saccade(*timed, "--ckpt_path=last")
    assert run.status == 0, run.text
    assert "no step was trained: the run that is continued has used up max_time; raise --trainer.max_time" in run.err
