"""The bench reports what a direct computation gives, on any number of ranks, and disturbs nothing."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import DataLoader

from saccade.callbacks import MissingDataEvaluation
from saccade.callbacks.missing_data import (
    evaluation as missing_data_evaluation,
)
from saccade.callbacks.missing_data import (
    figures as missing_data_figures,
)
from saccade.callbacks.missing_data import (
    report as missing_data_report,
)
from saccade.callbacks.missing_data.length_buckets import Parts
from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import erase
from saccade.datamodules.multimodal.missing.protocols import (
    FixedModalityMissing,
    FrameDrop,
    NothingMissing,
    RandomRateMissing,
)
from tests.callbacks.tiny import trainer
from tests.callbacks.tiny_multimodal import SHARES, TinyMultimodal, TinyProtocol, condition, loader, samples
from tests.support.processes import run_ranks

FILES = ["missing.json", "missing.md", "missing_patterns.png", "missing_rates.png", "missing_weights.png"]


def evaluated(folder: Any, batch: MultimodalBatch, batch_size: int = 3, **settings: Any) -> MissingDataEvaluation:
    module = settings.pop("module", None) or TinyMultimodal()
    callback = MissingDataEvaluation(settings.pop("protocol", TinyProtocol()), **({"mask_seeds": 2} | settings))
    trainer(folder, callbacks=[callback]).test(module, loader(batch, batch_size), verbose=False)
    return callback


def row(callback: MissingDataEvaluation, name: str, kind: str = "condition") -> dict:
    return next(one for one in callback.rows if one["kind"] == kind and one["name"] == name)


def direct(batch: MultimodalBatch, chosen: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    lost = erase(batch, chosen, seed)
    with torch.no_grad():
        found = TinyMultimodal().eval()(MultimodalBatch(lost.modalities, None, lost.key))
    return found.value, found.weights


def same(one: Any, other: Any) -> bool:
    """Equal up to the rounding of forwards of another shape."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return other == (pytest.approx(one, abs=1e-6) if isinstance(one, float) else one)


def results(callback_rows: list[dict]) -> list[dict]:
    kept = ("kind", "name", "metrics", "weights", "observed", "per_seed", "samples", "constant")
    return [{key: one[key] for key in kept} for one in callback_rows]


@pytest.mark.figures
def test_rows_are_what_a_direct_computation_gives(tmp_path) -> None:
    batch = samples(23)
    callback = evaluated(tmp_path, batch)
    assert json.loads((tmp_path / "missing.json").read_text()) == callback.rows
    for chosen in TinyProtocol().conditions():
        errors, rights = [], []
        for seed in range(2 if chosen.random else 1):
            value, weights = direct(batch, chosen, seed)
            errors.append((value - batch.label).abs().mean().item())
            rights.append(accuracy_score(batch.label.numpy() >= 0, value.numpy() >= 0))
        got = row(callback, chosen.name)
        assert got["per_seed"]["mae"] == pytest.approx(errors, abs=1e-6)
        assert got["metrics"]["mae"]["mean"] == pytest.approx(statistics.mean(errors), abs=1e-6)
        assert got["metrics"]["acc_2_has0"]["mean"] == pytest.approx(statistics.mean(rights))
        wanted = pytest.approx(statistics.stdev(errors), abs=1e-6) if chosen.random else None
        assert got["metrics"]["mae"]["sd"] == wanted
        if not chosen.random:
            means = dict(zip(MODALITIES, weights.mean(0).tolist(), strict=True))
            assert {name: spread["mean"] for name, spread in got["weights"].items()} == pytest.approx(means)
    assert row(callback, "r=0.3")["per_seed"]["mae"][0] != row(callback, "r=0.3")["per_seed"]["mae"][1]
    assert row(callback, "r=0.6")["observed"]["audio"]["mean"] == pytest.approx(0.4, abs=0.1)
    assert row(callback, "text")["observed"]["audio"] == {"mean": 0.0, "sd": None}
    first = callback.rows[0]
    assert first["condition"]["rates"] == [0.0, 0.0, 0.0]
    assert {"samples": 23, "stage": "test", "masks": "oracle", "mask_seeds": 2}.items() <= first.items()
    assert {"commit", "dirty", "versions", "device", "date", "seed", "command"} <= set(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_groups_are_means_over_their_conditions_seed_by_seed(tmp_path) -> None:
    callback = evaluated(tmp_path, samples(23))
    zero, low, high = (row(callback, f"r={rate}")["per_seed"]["mae"] for rate in (0.0, 0.3, 0.6))
    intra = row(callback, "intra", "group")
    assert intra["per_seed"]["mae"] == pytest.approx([(zero[0] + low[seed] + high[seed]) / 3 for seed in range(2)])
    areas = [0.15 * zero[0] + 0.3 * low[seed] + 0.15 * high[seed] for seed in range(2)]
    assert intra["per_seed"]["auilc_mae"] == pytest.approx(areas)
    assert {"auilc_acc_2_has0", "auilc_acc_2_non0"} <= set(intra["metrics"])
    # the complete data is no pattern
    inter = row(callback, "inter", "group")
    assert inter["conditions"] == ["text", "audio+vision"]
    kept = [row(callback, name)["metrics"]["mae"]["mean"] for name in ("text", "audio+vision")]
    assert inter["metrics"]["mae"] == {"mean": pytest.approx(sum(kept) / 2), "sd": None}
    assert "auilc_mae" not in inter["metrics"]
    assert "auilc_mae" not in row(callback, "mixed", "group")["metrics"]
    assert len(row(callback, "mixed", "group")["conditions"]) == 6


def test_means_of_groups_are_logged(tmp_path) -> None:
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=2)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.validate(TinyMultimodal(), loader(samples(8)), verbose=False)
    for name in ("intra", "inter", "mixed"):
        for metric, spread in row(callback, name, "group")["metrics"].items():
            assert runner.callback_metrics[f"missing/{name}/{metric}"].item() == pytest.approx(spread["mean"])
    assert callback.rows[0]["stage"] == "validate"
    assert not any("r=0.3" in name for name in runner.callback_metrics)


@pytest.mark.parametrize("batch_size", [1, 5, 200])
def test_the_batch_size_and_the_order_change_nothing(tmp_path, monkeypatch, batch_size: int) -> None:
    monkeypatch.setattr("saccade.callbacks.missing_data.length_buckets._PART", 4)
    batch = samples(13)
    wanted = results(evaluated(tmp_path, batch, 13).rows)
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=2)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.test(TinyMultimodal(), loader(batch, batch_size, shuffle=True), verbose=False)
    assert same(wanted, results(callback.rows))


class Lengths(TinyMultimodal):
    """To which padding means something."""

    def forward(self, batch: MultimodalBatch) -> Any:
        found = super().forward(batch)
        found.value = found.value + batch.modalities["text"].values.shape[1]
        return found


class OneLength(Lengths):
    """Made for one length."""

    def forward(self, batch: MultimodalBatch) -> Any:
        if batch.modalities["text"].values.shape[1] != 9:
            raise RuntimeError("size mismatch")
        return super().forward(batch)


@pytest.mark.parametrize("kind", [Lengths, OneLength])
def test_a_model_that_needs_whole_batches_gets_them(tmp_path, monkeypatch, kind: type) -> None:
    monkeypatch.setattr("saccade.callbacks.missing_data.length_buckets._PART", 4)
    batch = samples(13)
    callback = evaluated(tmp_path, batch, 13, module=kind())
    value, _ = direct(batch, condition("text", "inter", present=("text",)), 0)
    assert row(callback, "text")["metrics"]["mae"]["mean"] == pytest.approx(
        (value + 9 - batch.label).abs().mean().item()
    )


def test_parts_put_every_row_back_and_cut_only_padding() -> None:
    batch = samples(150)
    parts = Parts.of(batch)
    assert [len(rows) for rows in parts.rows] == [64, 64, 22]
    assert parts.lengths[0]["text"] < 9
    assert torch.equal(parts.map(lambda part: part.key[:, None], batch)[:, 0], batch.key)
    sums = parts.map(lambda part: part.modalities["audio"].values.sum((1, 2))[:, None], batch)[:, 0]
    assert torch.allclose(sums, batch.modalities["audio"].values.sum((1, 2)), atol=1e-5)


def test_what_a_protocol_took_away_in_validation_is_there_again(tmp_path) -> None:
    batch = samples(9)
    hurt = erase(batch, condition("r", "intra", 0.5, 0.9), 7)
    module = TinyMultimodal()
    module.on_after_batch_transfer = lambda *_: hurt
    callback = evaluated(tmp_path / "hurt", batch, 9, module=module)
    assert same(results(evaluated(tmp_path / "whole", batch, 9).rows), results(callback.rows))


class Data(LightningDataModule):
    def __init__(self, batch: MultimodalBatch, masks: str) -> None:
        super().__init__()
        self.batch, self.masks = batch, masks

    def test_dataloader(self) -> DataLoader:
        return loader(self.batch)


@pytest.mark.parametrize("masks", ["derived", "oracle"])
def test_masks_are_those_of_the_data_module(tmp_path, masks: str) -> None:
    batch = samples(6)
    batch.modalities["audio"].values[:, 0] = 0  # rows that are zero by nature, and said to be there
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=1)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.test(TinyMultimodal(), datamodule=Data(batch, masks), verbose=False)
    observed = row(callback, "r=0.0")["observed"]
    assert (observed["audio"]["mean"] < 1) == (masks == "derived")
    assert observed["text"]["mean"] == 1
    assert callback.rows[0]["masks"] == masks
    assert any("masks oracle" in note for note in missing_data_report.notes(callback.rows)) == (masks == "oracle")


@pytest.mark.figures
@pytest.mark.parametrize(
    ("protocol", "group", "curve"),
    [
        (NothingMissing(), "complete", False),
        (FixedModalityMissing(), "modalities", False),
        (FrameDrop(), "frames", True),
    ],
)
def test_protocols_of_one_group(tmp_path, protocol: Any, group: str, curve: bool) -> None:
    callback = evaluated(tmp_path, samples(9), protocol=protocol, mask_seeds=1)
    got = row(callback, group, "group")
    assert (got["curve"], len(got["conditions"])) == (curve, {"complete": 1, "modalities": 6, "frames": 10}[group])
    assert not any(name.startswith("auilc") for name in got["metrics"])
    assert (tmp_path / "missing_rates.png").exists() == curve
    assert (tmp_path / "missing_patterns.png").exists() != curve


def test_groups_are_logged_without_spaces(tmp_path) -> None:
    callback = MissingDataEvaluation(RandomRateMissing(rates=[0.0, 0.5, 1.0]), mask_seeds=1)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.test(TinyMultimodal(), loader(samples(5)), verbose=False)
    assert "missing/random_rates/auilc_mae" in runner.callback_metrics


@pytest.mark.figures
def test_classification(tmp_path) -> None:
    batch = samples(31, classes=3)
    callback = evaluated(tmp_path, batch, module=TinyMultimodal(3, weighted=False))
    with torch.no_grad():
        chosen = condition("text", "inter", present=("text",))
        lost = erase(batch, chosen, 0)
        guess = TinyMultimodal(3).eval()(MultimodalBatch(lost.modalities, None, lost.key)).value.argmax(1)
    got = row(callback, "text")
    assert got["metrics"]["accuracy"]["mean"] == pytest.approx(accuracy_score(batch.label, guess))
    wanted = f1_score(batch.label, guess, average="weighted", zero_division=0)
    assert got["metrics"]["f1"]["mean"] == pytest.approx(wanted)
    assert got["constant"]["accuracy"] == pytest.approx(batch.label.bincount().max().item() / 31)
    assert got["weights"] is None
    assert "| | Acc | F1 |" in (tmp_path / "missing.md").read_text()
    assert not (tmp_path / "missing_weights.png").exists()


def test_the_best_constant_is_the_median_and_the_majority(tmp_path) -> None:
    batch = samples(40)
    constant = evaluated(tmp_path, batch).rows[0]["constant"]
    assert constant["mae"] == pytest.approx((batch.label - batch.label.median()).abs().mean().item())
    positive = (batch.label >= 0).float().mean().item()
    assert constant["acc_2_has0"] == pytest.approx(max(positive, 1 - positive))
    assert "corr" not in constant


def fitted(folder: Any, callbacks: list) -> tuple[TinyMultimodal, torch.Tensor]:
    seed_everything(7, verbose=False)
    module = TinyMultimodal()
    module.train()
    module.heads["audio"].eval()  # a part that is meant to stay in evaluation mode
    runner = trainer(folder, callbacks=callbacks, max_epochs=2, num_sanity_val_steps=1)
    runner.fit(module, loader(samples(12), shuffle=True), loader(samples(5, seed=1)))
    assert module.heads["audio"].training is False
    assert module.dropout.training is True
    return module, torch.rand(1)


def test_training_with_the_bench_is_the_training_without(tmp_path) -> None:
    plain, draw = fitted(tmp_path / "plain", [])
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=1, during_fit=True, every_n_validations=2)
    observed, after = fitted(tmp_path / "observed", [callback])
    assert callback.rows[0]["epoch"] == 1
    assert callback.rows[0]["stage"] == "fit"
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, observed.get_parameter(name)), name
    assert torch.equal(draw, after)


def test_fit_runs_no_bench_unless_asked(tmp_path) -> None:
    callback = MissingDataEvaluation(TinyProtocol())
    fitted(tmp_path, [callback])
    assert callback.rows == []
    assert not (tmp_path / "missing.json").exists()


def test_the_checkpoint_is_named_by_its_epoch(tmp_path) -> None:
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=1)
    runner = trainer(tmp_path, callbacks=[callback], max_epochs=3, num_sanity_val_steps=0)
    module = TinyMultimodal()
    runner.fit(module, loader(samples(6)), loader(samples(4)))
    runner.save_checkpoint(tmp_path / "three.ckpt")
    other = trainer(tmp_path, callbacks=[callback])
    other.test(module, loader(samples(4)), ckpt_path=tmp_path / "three.ckpt", verbose=False)
    assert (callback.rows[0]["epoch"], callback.rows[0]["global_step"]) == (3, 6)
    trainer(tmp_path, callbacks=[callback]).test(TinyMultimodal(), loader(samples(4)), verbose=False)
    assert (callback.rows[0]["epoch"], callback.rows[0]["global_step"]) == (0, 0)


class Breaking(TinyMultimodal):
    def forward(self, batch: MultimodalBatch) -> Any:
        if not batch.modalities["text"].present.any():
            raise RuntimeError("no such\n  luck")
        return super().forward(batch)


class Formless(TinyMultimodal):
    forward = torch.nn.Module.forward

    def step(self, batch: MultimodalBatch) -> torch.Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Breaking(), r"^model must map .* Breaking failed on condition 'audio\+vision' \(no such luck\)\.$"),
        (Formless(), r"^model must map .* Formless failed on complete data \(Module \[Formless\] is missing"),
    ],
)
def test_a_model_that_fails_is_one_line_and_nothing_is_written(tmp_path, module: TinyMultimodal, message: str) -> None:
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=1)
    with pytest.raises(ValueError, match=message) as caught:
        trainer(tmp_path, callbacks=[callback]).test(module, loader(samples(4)), verbose=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert callback._pool is None


def test_a_figure_that_fails_leaves_the_old_files(tmp_path, monkeypatch) -> None:
    evaluated(tmp_path, samples(5))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: Any) -> None:
        raise KeyError("figure")

    monkeypatch.setattr(missing_data_figures, "weights_figure", fail)
    with pytest.raises(KeyError):
        evaluated(tmp_path, samples(6))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_folder_that_is_a_file_is_refused_before_the_work(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "occupied"
    folder.write_text("")
    monkeypatch.setattr(missing_data_evaluation, "erase", None)
    with pytest.raises(ValueError, match=r"cannot create the run folder .*occupied"):
        evaluated(folder, samples(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_seeds": 0}, "mask_seeds must be at least 1, got 0"),
        ({"every_n_validations": -1}, "every_n_validations must be at least 1, got -1"),
        ({"protocol": "intra"}, "protocol must be a .*MissingProtocol, got str"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MissingDataEvaluation(**({"protocol": TinyProtocol()} | settings))


def test_other_data_and_other_models_are_refused(tmp_path) -> None:
    unlabelled = samples(3)
    unlabelled.label = None
    for batch, found in ((unlabelled, "batches without labels"), ({"x": torch.zeros(2)}, "dict")):
        module = TinyMultimodal()
        module.test_step = lambda *_: None
        runner = trainer(tmp_path, callbacks=[MissingDataEvaluation(TinyProtocol())])
        with pytest.raises(ValueError, match=f"data must give MultimodalBatch objects with labels .*, got {found}"):
            runner.test(module, DataLoader([batch], batch_size=None), verbose=False)
    module = TinyMultimodal()
    del module.task
    with pytest.raises(ValueError, match=r"model must have the attributes .*, got TinyMultimodal without task:"):
        evaluated(tmp_path, samples(2), module=module)


def test_samples_of_one_key_count_once_and_are_reported(tmp_path) -> None:
    batch = samples(6)
    batch.key[3] = batch.key[0]
    with pytest.warns(UserWarning, match="1 samples were left out because another sample has the same key"):
        callback = evaluated(tmp_path, batch)
    assert callback.rows[0]["samples"] == 5


def test_tables_and_notes(tmp_path) -> None:
    callback = evaluated(tmp_path, samples(23))
    text = (tmp_path / "missing.md").read_text()
    assert "| | Acc-7 | Acc-5 | Acc-2 (N0/H0) | F1 (N0/H0) | MAE | Corr |" in text
    assert "| **mean of 2** (without the complete data) |" in text
    numbers = row(callback, "r=0.0")["metrics"]
    pair = f"{100 * numbers['acc_2_non0']['mean']:.2f}/{100 * numbers['acc_2_has0']['mean']:.2f}"
    assert f"| r=0.0 | {100 * numbers['acc_7']['mean']:.2f} |" in text
    assert f"| {pair} |" in text
    screen = Console(width=80, record=True)
    screen.print(missing_data_report.table(callback.rows))
    shown = screen.export_text()
    assert "…" not in shown
    assert "mixed" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    hurt = [dict(one) for one in callback.rows]
    for one in hurt:
        if one["name"] == "+".join(MODALITIES):
            one["metrics"] = one["metrics"] | {"mae": {"mean": 9.0, "sd": None}}
    assert any("all modalities together give worse results than" in note for note in missing_data_report.notes(hurt))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks("tests.callbacks.missing_data.ddp_script", folder)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_report_what_one_reports(two_processes: dict, tmp_path: Path, name: str) -> None:
    count = SHARES[name]
    callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=2)
    runner: Trainer = trainer(tmp_path, callbacks=[callback])
    runner.test(TinyMultimodal(), loader(samples(count)), verbose=False)
    result = two_processes[name]
    # each rank adds up by itself, and sums of floats may differ in their last digit
    assert same(results(result["rows"][0]), results(result["rows"][1]))
    assert result["rows"][0][0]["ranks"] == 2
    assert result["rows"][0][0]["samples"] == count
    assert same(results(callback.rows), results(result["rows"][0]))
    key = "missing/mixed/mae"
    assert result["metrics"][key] == pytest.approx(runner.callback_metrics[key].item(), abs=1e-6)


def test_the_shares_were_unequal_repeated_and_empty(two_processes: dict) -> None:
    assert {name: result["shares"] for name, result in two_processes.items()} == {
        "padded": [4, 4],
        "one": [1, 1],
        "empty": [11, 0],
    }
