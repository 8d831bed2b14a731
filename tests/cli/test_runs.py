"""A run folder of its own for every invocation, with records that can be used again."""

import json
from pathlib import Path

import pytest
import yaml

from saccade.cli.errors import UsageError
from saccade.cli.run_folders import create_run_folder, discard_if_without_results, earlier_runs, find_checkpoint


def test_fit_keeps_everything_in_its_own_folder(saccade, toy):
    run = saccade("fit", "--config", "toy.yaml")
    assert run.status == 0, run.text
    assert run.folder.parent == toy / "runs" / "toy"
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "provenance.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "model/layer.pt",
        "logs/metrics.csv", "logs/hparams.yaml",
    }  # fmt: skip
    assert sorted(path.name for path in toy.iterdir()) == ["runs", "toy.yaml"]
    assert (toy / "runs" / "toy" / "latest").resolve() == run.folder
    assert run.err.strip().splitlines()[-1].endswith(f"results are in runs/toy/{run.folder.name}")


def test_without_logger_nothing_is_written_beside_the_run_folder_and_the_second_run_lives(saccade, toy):
    arguments = ("validate", "--config", "toy.yaml", "--trainer.logger=false")
    first, second = saccade(*arguments), saccade(*arguments)
    assert (first.status, second.status) == (0, 0), first.text + second.text
    assert first.folder != second.folder
    for run in (first, second):
        assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "provenance.json"]
    assert sorted(path.name for path in toy.iterdir()) == ["runs", "toy.yaml"]


def test_config_of_a_fit_serves_every_other_subcommand(saccade):
    fit = saccade("fit", "--config", "toy.yaml", "--model.learning_rate=0.05")
    config = str(fit.folder / "config.yaml")
    for subcommand in ("validate", "test", "predict", "fit"):
        run = saccade(subcommand, "--config", config, "--ckpt_path", str(fit.folder / "checkpoints" / "last.ckpt"))
        assert run.status == 0, run.text
        assert run.folder.parent == fit.folder.parent, "the run's name is in its config"
        saved = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert saved["model"]["init_args"]["learning_rate"] == 0.05
        assert "differ" not in run.text
    # and the config that predict saved is one for fit
    assert saccade("fit", "--config", str(run.folder / "config.yaml")).status == 0


def test_provenance_record(saccade, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/saccade", "fit", "--config", "toy.yaml"])
    run = saccade("fit", "--config", "toy.yaml", "--seed_everything=17")
    record = json.loads((run.folder / "provenance.json").read_text())
    assert record["seed"] == 17
    assert record["command"] == ["saccade", "fit", "--config", "toy.yaml"]
    assert (record["subcommand"], record["name"], record["checkpoint"]) == ("fit", "toy", None)
    assert record["commit"] is None, "the working directory of this test is no repository"


def test_name_and_place(saccade, toy):
    assert saccade("validate", "--config", "toy.yaml", "--name", "other").folder.parent == toy / "runs" / "other"
    run = saccade("validate", "--config", "toy.yaml", "--runs_folder", "runs2")
    assert run.folder.parent == toy / "runs2" / "toy"
    by_class = saccade(
        "validate", "--model", "tests.cli.toy.ToyModel", "--data", "tests.cli.toy.ToyData",
        "--trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert by_class.folder.parent == toy / "runs" / "ToyModel"
    bad = saccade("validate", "--config", "toy.yaml", "--name", "../up")
    assert (bad.status, bad.new_folders) == (2, [])
    assert "--name must be a plain folder name, got '../up'" in bad.err


def test_default_root_dir_is_refused_by_name(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--trainer.default_root_dir=elsewhere")
    assert run.status == 2
    assert "--runs_folder" in run.err
    assert run.new_folders == []


def test_two_runs_of_one_second_do_not_meet(tmp_path):
    folders = [create_run_folder(str(tmp_path), "x") for _ in range(12)]
    assert len(set(folders)) == 12
    assert earlier_runs(str(tmp_path), "x") == folders[::-1], "newest first, -10 after -9"


def test_a_run_folder_that_cannot_be_made_is_one_line(saccade, toy):
    (toy / "taken").write_text("a file, where the folder of all runs should be")
    run = saccade("fit", "--config", "toy.yaml", "--runs_folder", "taken")
    assert run.status == 2
    (line,) = [line for line in run.err.splitlines() if line.startswith("saccade: error:")]
    assert "taken/toy" in line
    assert "--runs_folder" in line
    assert "Traceback" not in run.text
    assert (toy / "taken").is_file()


def test_failed_start_leaves_no_folder(saccade, toy):
    run = saccade("fit", "--config", "toy.yaml", "--model.width=0")
    assert run.status == 2
    assert run.new_folders == []
    assert not (toy / "runs" / "toy").exists()


def test_discard_keeps_results(tmp_path):
    folder = create_run_folder(str(tmp_path), "x")
    (folder / "config.yaml").touch()
    (folder / "decoding.json").touch()
    assert not discard_if_without_results(folder)
    assert (folder / "decoding.json").exists()
    (folder / "decoding.json").unlink()
    assert discard_if_without_results(folder)
    assert not folder.exists()


def made(runs: Path, name: str, *checkpoints: str, **record: str) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "provenance.json").write_text(json.dumps({"subcommand": "fit", **record}))
    for which in checkpoints:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"{which}.ckpt").touch()
    return folder


def test_find_checkpoint_takes_the_newest_fit(tmp_path):
    runs = tmp_path / "x"
    made(runs, "20260101-000000", "last", "best")
    newest = made(runs, "20260102-000000", "last", "best")
    made(runs, "20260103-000000", subcommand="validate")
    (runs / "20260104-000000").mkdir()
    (runs / "notes").mkdir()
    for which in ("last", "best"):
        assert find_checkpoint(str(tmp_path), "x", which) == newest / "checkpoints" / f"{which}.ckpt"
    with pytest.raises(UsageError, match="saccade fit"):
        find_checkpoint(str(tmp_path), "y", "last")


def test_last_never_means_an_older_fit_in_silence(tmp_path):
    """The newest fit was killed before its first save: the older checkpoint is named, and not taken."""
    older = made(tmp_path / "x", "20260101-000000", "last", "best")
    made(tmp_path / "x", "20260102-000000")
    for which in ("last", "best"):
        with pytest.raises(UsageError, match=f"20260102-000000, which ended before.*{older}/checkpoints/{which}.ckpt"):
            find_checkpoint(str(tmp_path), "x", which)


def test_a_continued_fit_that_saved_nothing_is_continued_from_the_same_checkpoint(tmp_path):
    older = made(tmp_path / "x", "20260101-000000", "last", "best")
    made(tmp_path / "x", "20260102-000000", "last", "best")
    origin = older / "checkpoints" / "last.ckpt"
    made(tmp_path / "x", "20260103-000000", checkpoint=str(origin))
    assert find_checkpoint(str(tmp_path), "x", "last") == origin
    assert find_checkpoint(str(tmp_path), "x", "best") == older / "checkpoints" / "best.ckpt"


def test_a_fit_without_a_best_checkpoint_says_why_there_is_none(tmp_path):
    made(tmp_path / "x", "20260101-000000", "last")
    with pytest.raises(
        UsageError, match=r"^--ckpt_path best needs best\.ckpt of a fit, [^\n]+ use --ckpt_path last\.$"
    ):
        find_checkpoint(str(tmp_path), "x", "best")


def test_last_resumes_and_best_validates(saccade):
    first = saccade("fit", "--config", "toy.yaml")
    resumed = saccade("fit", "--config", "toy.yaml", "--ckpt_path", "last", "--trainer.max_epochs=3")
    assert resumed.status == 0, resumed.text
    assert str(Path("runs/toy") / first.folder.name / "checkpoints" / "last.ckpt") in resumed.text
    steps = [line.split(",") for line in (resumed.folder / "logs" / "metrics.csv").read_text().splitlines()]
    column = steps[0].index("step")
    assert {int(row[column]) for row in steps[1:]} == {8, 9, 10, 11}, "only the third epoch is trained"
    for subcommand, which in (("validate", "best"), ("test", "last"), ("predict", "last")):
        run = saccade(subcommand, "--config", "toy.yaml", "--ckpt_path", which)
        assert run.status == 0, run.text
        record = json.loads((run.folder / "provenance.json").read_text())
        assert record["checkpoint"] == f"runs/toy/{resumed.folder.name}/checkpoints/{which}.ckpt"


def test_last_without_a_run_is_an_error(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--ckpt_path", "last")
    assert (run.status, run.new_folders) == (2, [])
    assert "--ckpt_path last needs a run with last.ckpt, got none in runs/toy" in run.err


def test_module_without_val_loss_and_export(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--model", "tests.cli.toy.ToyModelWithoutValidation")
    assert run.status == 0, run.text
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (run.folder / "model").exists()


@pytest.mark.parametrize(
    ("fail", "status", "told"),
    [("interrupt", 130, "saccade: interrupted"), ("terminated", 143, "saccade: terminated; partial results are in")],
)
def test_a_fit_that_is_stopped_keeps_the_last_state(saccade, fail, status, told):
    run = saccade("fit", "--config", "toy.yaml", f"--model.fail={fail}")
    assert run.status == status
    assert told in run.err
    assert "Traceback" not in run.text
    assert (run.folder / "checkpoints" / "last.ckpt").is_file()
    resumed = saccade("fit", "--config", "toy.yaml", "--ckpt_path", "last")
    assert resumed.status == 0, resumed.text


def test_a_fit_that_diverged_says_so(saccade, toy):
    first = saccade("fit", "--config", "toy.yaml")
    run = saccade("fit", "--config", "toy.yaml", "--model.fail=diverges")
    assert run.status == 2
    assert "the training ended with a train_loss of nan: lower the learning rate" in run.err
    assert (toy / "runs" / "toy" / "latest").resolve() == first.folder
    assert not (run.folder / "checkpoints" / "best.ckpt").exists(), "a loss of NaN is not the best one"
    assert (first.folder / "model").is_dir()
    assert not (run.folder / "model").exists(), "nobody wants a model of NaN"


@pytest.mark.parametrize("nothing", ["--trainer.fast_dev_run=true", "--trainer.max_steps=0"])
def test_a_fit_that_learns_nothing_does_not_become_the_latest(saccade, toy, nothing):
    first = saccade("fit", "--config", "toy.yaml")
    saccade("fit", "--config", "toy.yaml", nothing)
    assert (toy / "runs" / "toy" / "latest").resolve() == first.folder


def test_validate_tells_its_metrics_in_one_line(saccade):
    run = saccade("validate", "--config", "toy.yaml")
    (line,) = [line for line in run.err.splitlines() if "val_loss" in line]
    assert line.startswith("saccade: val_loss ")
    assert "val_loss" not in run.out, "and not in Lightning's table as well"
    assert "val_loss" not in saccade("validate", "--config", "toy.yaml", "--verbose=false").text
