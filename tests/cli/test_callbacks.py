"""Our own callbacks are in every run, whatever the user's list says."""

import yaml

STOPPING = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}}
OWN = ["BestCheckpoint", "LastCheckpoint", "LearningRateMonitor", "ModelExport", "RunFolder"]


def names(toy) -> list[str]:
    return (toy / "witness.txt").read_text().splitlines()


def test_a_second_config_with_callbacks_loses_none_of_ours(saccade, toy):
    witness = {"class_path": "tests.cli.toy.Witness", "init_args": {"path": "witness.txt"}}
    second = {"trainer": {"callbacks": [witness, STOPPING]}}
    (toy / "second.yaml").write_text(yaml.safe_dump(second))
    run = saccade("fit", "--config", "toy.yaml", "--config", "second.yaml")
    assert run.status == 0, run.text
    found = names(toy)
    assert sorted(set(found) & {*OWN, "Witness", "EarlyStopping"}) == sorted([*OWN, "Witness", "EarlyStopping"])
    assert found[0] == "RunFolder", "the folder is agreed on before anybody asks for it"
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    theirs = [entry["class_path"].rsplit(".", 1)[-1] for entry in saved["trainer"]["callbacks"]]
    assert theirs == ["Witness", "EarlyStopping"]


def test_plus_adds_on_the_command_line_and_in_yaml(saccade, toy):
    first = {"trainer": {"callbacks": [STOPPING]}}
    more = {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}]}}
    (toy / "first.yaml").write_text(yaml.safe_dump(first))
    (toy / "more.yaml").write_text(yaml.safe_dump(more))
    run = saccade(
        "fit", "--config", "toy.yaml", "--config", "first.yaml", "--config", "more.yaml",
        "--trainer.callbacks+=tests.cli.toy.Witness", "--trainer.callbacks.path=witness.txt",
    )  # fmt: skip
    assert run.status == 0, run.text
    assert set(names(toy)) >= {*OWN, "EarlyStopping", "DeviceStatsMonitor", "Witness"}


def test_switches_of_the_trainer_hold_for_ours(saccade, toy):
    run = saccade(
        "fit", "--config", "toy.yaml", "--trainer.logger=false", "--trainer.enable_checkpointing=false",
        "--trainer.callbacks+=tests.cli.toy.Witness", "--trainer.callbacks.path=witness.txt",
    )  # fmt: skip
    assert run.status == 0, run.text
    assert not set(names(toy)) & {"BestCheckpoint", "LastCheckpoint", "LearningRateMonitor"}
    assert not (run.folder / "checkpoints").exists()


def test_the_users_checkpoint_and_progress_bar_live_beside_ours(saccade, toy):
    run = saccade(
        "fit", "--config", "toy.yaml", "--trainer.enable_progress_bar=true",
        "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_loss",
        "--trainer.callbacks+=TQDMProgressBar",
        "--trainer.callbacks+=tests.cli.toy.Witness", "--trainer.callbacks.path=witness.txt",
    )  # fmt: skip
    assert run.status == 0, run.text
    found = names(toy)
    assert {"ModelCheckpoint", "BestCheckpoint", "TQDMProgressBar"} <= set(found)
    assert "RunProgressBar" not in found


def test_fast_dev_run_saves_and_exports_nothing(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--trainer.fast_dev_run=true")
    assert run.status == 0, run.text
    assert {path.name for path in run.folder.iterdir()} <= {"config.yaml", "provenance.json", "logs"}


def test_a_search_that_fails_behind_a_fit_does_not_cost_the_export(saccade, toy):
    run = saccade(
        "fit", "--config", "toy.yaml", "--trainer.callbacks+=tests.cli.toy.Witness",
        "--trainer.callbacks.path=witness.txt", "--trainer.callbacks+=LayerSkipSearch",
    )  # fmt: skip
    assert run.status == 2  # the toy has no text to search with
    found = names(toy)
    assert found.index("ModelExport") < found.index("LayerSkipSearch")
