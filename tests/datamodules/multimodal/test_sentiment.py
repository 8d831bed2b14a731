"""MultimodalSentiment: batches are exact whatever their size, every sample comes once, what is missing is marked."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from saccade.datamodules import MultimodalSentiment, NothingMissing, SyntheticSentiment
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import UNKNOWN_TOKEN, Condition, MissingProtocol, erase
from saccade.datamodules.multimodal.sentiment import Samples, derive_availability, sample_key
from tests.datamodules.multimodal.test_feature_files import Raw, mmsa, write

SMALL = SyntheticSentiment(clips=(30, 11, 17), seed=3)


@dataclass
class EverySecond(MissingProtocol):
    """Takes away every second sound; remembers what it was asked."""

    asked: list[Any] = field(default_factory=list)

    def prepare(self, keys: Tensor, split: str) -> None:
        self.asked.append((split, len(keys)))

    def training(self, batch: MultimodalBatch, epoch: int) -> MultimodalBatch:
        self.asked.append(("training", epoch))
        return self.take(batch)

    def validation(self, batch: MultimodalBatch) -> MultimodalBatch:
        self.asked.append("validation")
        return self.take(batch)

    def conditions(self) -> list[Condition]:
        return []

    def take(self, batch: MultimodalBatch) -> MultimodalBatch:
        audio = batch.modalities["audio"]
        values = audio.values.clone()
        values[:, ::2] = 0  # the availability is not told
        return batch.with_modalities({"audio": replace(audio, values=values)})


class Recorder(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[MultimodalBatch]] = {"train": [], "valid": [], "test": [], "predict": []}

    def training_step(self, batch: MultimodalBatch, index: int) -> Tensor:
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: MultimodalBatch, index: int) -> None:
        self.seen["valid"].append(batch)

    def test_step(self, batch: MultimodalBatch, index: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: MultimodalBatch, index: int) -> Tensor:
        self.seen["predict"].append(batch)
        return batch.key

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **settings},
    )


def ready(stage: str | None = None, **settings: Any) -> MultimodalSentiment:
    data = MultimodalSentiment(**{"generator": SMALL, "batch_size": 4, **settings})
    data.setup(stage)
    return data


def tensors(modality: Modality) -> Iterator[tuple[str, Tensor]]:
    for name in ("values", "valid", "available", "special"):
        yield name, getattr(modality, name)


def by_id(
    batches: list[MultimodalBatch], data: MultimodalSentiment, full: dict[str, int]
) -> dict[str, dict[str, Tensor]]:
    """Each sample's tensors, padded to the full length."""
    found: dict[str, dict[str, Tensor]] = {}
    for batch in batches:
        for row, sample in enumerate(data.sample_ids(batch.key)):
            assert sample not in found
            one = found[sample] = {}
            if batch.label is not None:
                one["label"] = batch.label[row]
            for name, modality in batch.modalities.items():
                for kind, tensor in tensors(modality):
                    padded = tensor.new_zeros(full[name], *tensor.shape[2:])
                    padded[: tensor.shape[1]] = tensor[row]
                    one[f"{name} {kind}"] = padded
    return found


def test_batches_are_as_the_contract_says() -> None:
    data = ready()
    assert data.dataset == "synthetic"
    assert data.widths == {"text": 32, "audio": 5, "vision": 20}
    assert (data.classes, data.label_range) == (None, 3.0)
    assert data.splits == {"train": 30, "valid": 11, "test": 17}
    raw = SMALL.generate()["test"]
    batch = next(iter(data.test_dataloader()))
    assert batch.label is not None
    assert (batch.label.dtype, batch.key.dtype, tuple(batch.modalities)) == (torch.float32, torch.int64, MODALITIES)
    assert data.sample_ids(batch.key) == raw["id"].tolist()
    np.testing.assert_array_equal(batch.label.numpy(), raw["regression_labels"])
    for name, modality in batch.modalities.items():
        length = int(modality.valid.sum(1).max())
        assert modality.values.shape == (17, length, data.widths[name])
        np.testing.assert_array_equal(modality.values.numpy(), raw[name][:, :length])
        assert (modality.valid.dtype, modality.available.dtype) == (torch.bool, torch.float32)
        zero = (modality.values == 0).all(-1) & ~modality.special
        assert torch.equal(modality.available, (modality.valid & ~zero).float())
    assert (batch.modalities["vision"].available.sum(1) < batch.modalities["vision"].valid.sum(1)).any()
    text = batch.modalities["text"]
    assert (text.special.sum(1) == 2).all()
    assert text.special[:, 0].all()


def test_tokens() -> None:
    data = ready(text="tokens")
    batch = next(iter(data.test_dataloader()))
    text = batch.modalities["text"]
    assert text.values.dtype == torch.int64
    assert set(text.values[text.special].tolist()) == {101, 102}
    assert (text.values[~text.valid] == 0).all()
    assert set(data.statistics) == {"audio", "vision"}


@pytest.mark.parametrize("masks", ["derived", "oracle"])
def test_a_token_that_is_unknown_by_nature(tmp_path: Path, masks: Any) -> None:
    raw = mmsa()
    raw["test"]["text_bert"][1, 0, :3] = [101, UNKNOWN_TOKEN, 102]
    raw["test"]["text_bert"][1, 1] = [1, 1, 1, 0, 0, 0, 0, 0]
    data = ready(path=str(write(tmp_path, raw)), text="tokens", masks=masks)
    text = next(iter(data.test_dataloader())).modalities["text"]
    assert text.available[1, :3].tolist() == ([1, 0, 1] if masks == "derived" else [1, 1, 1])


@pytest.mark.parametrize("size", [1, 3, 5, 17])
def test_batch_size_and_the_padding_that_is_cut_change_nothing(size: int) -> None:
    data, whole = ready(eval_batch_size=size), ready(eval_batch_size=1000)
    full = dict.fromkeys(MODALITIES, 50)
    batches = list(data.test_dataloader())
    assert max(len(batch) for batch in batches) <= size
    found, wanted = by_id(batches, data, full), by_id(list(whole.test_dataloader()), whole, full)
    assert list(wanted) == SMALL.generate()["test"]["id"].tolist()
    assert found.keys() == wanted.keys()
    for sample in wanted:
        assert found[sample].keys() == wanted[sample].keys()
        for name in wanted[sample]:
            assert torch.equal(found[sample][name], wanted[sample][name]), (sample, name)
    if size < 17:
        assert len({batch.modalities["audio"].values.shape[1] for batch in batches}) > 1


def test_a_sample_without_any_position() -> None:
    raw = mmsa()
    raw["test"]["audio_lengths"] = [0] * 4
    raw["test"]["audio"] = np.zeros_like(raw["test"]["audio"])
    batch = next(iter(ready_from(raw).test_dataloader()))
    assert batch.modalities["audio"].values.shape == (4, 1, 5)
    assert not batch.modalities["audio"].valid.any()


def ready_from(raw: Raw, **settings: Any) -> MultimodalSentiment:
    """Data of raw splits, through the generator's way in."""

    class Given(SyntheticSentiment):
        def generate(self) -> Raw:
            return raw

    return ready(generator=Given(), **settings)


def test_what_the_generator_makes_is_checked_as_a_file_is() -> None:
    raw = mmsa()
    raw["train"]["vision"][2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"generator, split train: vision must be finite, got nan in sample 'train"):
        ready_from(raw)


def test_padding_of_a_file_is_not_seen() -> None:
    text = next(iter(ready_from(mmsa()).test_dataloader())).modalities["text"]
    assert (text.values[~text.valid] == 0).all()
    assert (mmsa()["test"]["text"] != 0).all()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_every_sample_comes_once_on_any_number_of_ranks(world: int, split: str) -> None:
    data = ready(eval_batch_size=3)
    seen: list[int] = []
    for rank in range(world):
        data.trainer = type("T", (), {"global_rank": rank, "world_size": world})()  # type: ignore[assignment]
        loader = data.val_dataloader() if split == "valid" else data.test_dataloader()
        for batch in loader:
            seen += batch.key.tolist()
    assert sorted(seen) == sorted(sample_key(name) for name in SMALL.generate()[split]["id"])


def test_ranks_share_a_training_epoch_which_follows_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)

    def order(epoch: int, rank: int = 0, world: int = 1, seed: int = 0) -> list[int]:
        data = ready(seed=seed)
        data.trainer = type("T", (), {"global_rank": rank, "world_size": world})()  # type: ignore[assignment]
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [key for batch in loader for key in batch.key.tolist()]

    assert order(0) == order(0) != order(1)
    assert order(0) != order(0, seed=1)
    first, second = order(0, 0, 2), order(0, 1, 2)
    assert len(first) == len(second) == 12
    assert not set(first) & set(second)
    assert len(order(0)) == 28
    by_setting = order(0, seed=5)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert order(0) == by_setting


def test_workers_give_the_same() -> None:
    alone, helped = ready(eval_batch_size=5), ready(eval_batch_size=5, num_workers=2)
    full = dict.fromkeys(MODALITIES, 50)
    found, wanted = (by_id(list(data.val_dataloader()), data, full) for data in (helped, alone))
    assert list(found) == list(wanted)
    assert all(torch.equal(found[sample][name], wanted[sample][name]) for sample in wanted for name in wanted[sample])


def test_keys_are_of_the_ids_only() -> None:
    key = sample_key("video0000$_$3")
    assert key == int(hashlib.sha256(b"video0000$_$3").hexdigest()[:16], 16) >> 1
    assert 0 <= key < 2**63
    data = ready()
    with pytest.raises(ValueError, match="keys must be those of loaded samples, got 12345"):
        data.sample_ids(torch.tensor([12345]))


def test_ids_of_a_split() -> None:
    assert ready().ids("valid") == SMALL.generate()["valid"]["id"].tolist()
    with pytest.raises(ValueError, match="split must be one of train, valid, test, got 'predict'"):
        ready().ids("predict")


def test_statistics_are_of_available_training_rows_only() -> None:
    data, raw = ready(), SMALL.generate()["train"]
    for name in ("audio", "vision"):
        rows = raw[name][(raw[name] != 0).any(-1)].astype(np.float64)
        mean, std = data.statistics[name]
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, rows.std(0), rtol=1e-5)
    rows = raw["text"][raw["text_bert"][:, 1] == 1].astype(np.float64)
    np.testing.assert_allclose(data.statistics["text"][0], rows.mean(0), rtol=1e-5, atol=1e-6)


def test_a_constant_feature_and_a_modality_that_is_never_there_have_the_deviation_1() -> None:
    raw = mmsa()
    raw["train"]["audio"][..., 1] = np.float32(0.1) * 3
    raw["train"]["audio_lengths"] = [12] * 5
    raw["train"]["vision"][:] = 0
    statistics = ready_from(raw).statistics
    assert statistics["audio"][1][1] == 1
    assert statistics["audio"][1][0] != 1
    assert torch.equal(statistics["vision"][0], torch.zeros(4))
    assert torch.equal(statistics["vision"][1], torch.ones(4))


def test_classes() -> None:
    raw = mmsa()
    for one in raw.values():
        one["classification_labels"] = np.zeros(len(one["id"]), int)
    with pytest.raises(ValueError, match="task classification needs at least two classes"):
        ready_from(raw, task="classification")
    raw = mmsa()
    for one in raw.values():
        one["classification_labels"] = np.zeros(len(one["id"]), int)
    raw["valid"]["classification_labels"][1] = 3
    data = ready_from(raw, task="classification")
    assert data.classes == 4
    label = next(iter(data.test_dataloader())).label
    assert label is not None
    assert label.dtype == torch.int64


# protocols


@pytest.mark.parametrize("masks", ["derived", "oracle"])
def test_protocols_see_training_and_validation_only(tmp_path: Path, masks: Any) -> None:
    train, valid = EverySecond(), EverySecond()
    data = MultimodalSentiment(
        generator=SMALL, batch_size=10, masks=masks, train_protocol=train, validation_protocol=valid
    )
    model = Recorder()
    run = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=1)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    run.predict(model, data)
    splits = [("train", 30), ("valid", 11), ("test", 17)]
    assert train.asked == [*splits, *[("training", 0)] * 3, *[("training", 1)] * 3]
    assert valid.asked == [*splits, *["validation"] * 3]
    for split in ("train", "valid"):
        for batch in model.seen[split]:
            assert batch.complete is not None
            audio, whole = batch.modalities["audio"], batch.complete.modalities["audio"]
            assert (audio.values[:, ::2] == 0).all()
            assert (whole.values[:, ::2] != 0).any()
            assert torch.equal(whole.available, (whole.values != 0).any(-1).float())
            wanted = (audio.values != 0).any(-1).float() if masks == "derived" else whole.available
            assert torch.equal(audio.available, wanted)
    for split in ("test", "predict"):
        assert [len(batch) for batch in model.seen[split]] == [17]
        assert model.seen[split][0].complete is None


def test_derived_masks() -> None:
    valid = torch.tensor([[True, True, True, True, False]])
    special = torch.tensor([[True, False, False, True, False]])
    tokens = torch.tensor([[UNKNOWN_TOKEN, UNKNOWN_TOKEN, 7, 102, 7]])
    rows = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0]])[..., None]
    guess = torch.full((1, 5), 0.3)
    nothing = torch.zeros_like(special)
    batch = MultimodalBatch(
        {
            "text": Modality(tokens, valid, guess, special),
            "audio": Modality(rows, valid, guess, nothing),
            "vision": Modality(rows, valid, guess, special),
        },
        None,
        torch.tensor([1]),
    )
    found = derive_availability(batch)
    assert found.modalities["text"].available.tolist() == [[1, 0, 1, 1, 0]]
    assert found.modalities["audio"].available.tolist() == [[0, 0, 1, 0, 0]]
    assert found.modalities["vision"].available.tolist() == [[1, 0, 1, 1, 0]]
    assert torch.equal(batch.modalities["text"].available, guess)


def test_the_default_protocol_takes_things_away(tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path).fit(model, MultimodalSentiment(generator=SMALL, batch_size=10))
    for split in ("train", "valid"):
        for batch in model.seen[split]:
            assert batch.complete is not None
            assert (batch.observed < batch.complete.observed).any()


@pytest.mark.parametrize("text", ["features", "tokens"])
def test_what_a_protocol_says_can_be_derived(text: Any) -> None:
    """So a condition that the bench applies needs no second look at the values."""
    condition = Condition("c", "mixed", present=("text", "vision"), rates=(0.4, 0.0, 0.6), random=True)
    batch = next(iter(ready(text=text).test_dataloader()))
    erased = erase(batch, condition, seed=1)
    found = derive_availability(erased)
    for name, modality in erased.modalities.items():
        assert torch.equal(found.modalities[name].available, modality.available), name
        assert modality.available.sum() < batch.modalities[name].available.sum()


def test_corruption_can_be_switched_off(tmp_path: Path) -> None:
    model = Recorder()
    data = MultimodalSentiment(generator=SMALL, batch_size=10, train_protocol=NothingMissing())
    trainer(tmp_path).fit(model, data)
    whole = by_id(list(data._loader("train")), data, dict.fromkeys(MODALITIES, 50))
    found = by_id(model.seen["train"], data, dict.fromkeys(MODALITIES, 50))
    assert len(found) == 30
    assert all(torch.equal(found[sample][name], whole[sample][name]) for sample in whole for name in whole[sample])


# prediction


def test_predict_reads_its_own_file(tmp_path: Path) -> None:
    raw = mmsa(seed=1)["test"]
    raw.pop("regression_labels")
    raw.pop("classification_labels")
    path = str(write(tmp_path, raw))
    data = MultimodalSentiment(predict_path=path)
    model = Recorder()
    keys = trainer(tmp_path).predict(model, data)
    assert keys is not None
    assert data.splits == {"predict": 4}
    assert data.sample_ids(torch.cat(keys)) == raw["id"]
    assert model.seen["predict"][0].label is None
    assert data.widths == {"text": 6, "audio": 5, "vision": 4}
    with pytest.raises(ValueError, match=r"predict_path must have classification_labels to know the number of classes"):
        ready("predict", predict_path=path, task="classification")


def test_predict_file_must_fit_the_training_file(tmp_path: Path) -> None:
    path = tmp_path / "train.pkl"
    write(tmp_path, mmsa()).rename(path)
    raw = mmsa(seed=1)["test"]
    raw["audio"] = raw["audio"][..., :3]
    wrong = str(write(tmp_path, raw))
    with pytest.raises(ValueError, match=r"must have the widths of path, .*'audio': 5.* got .*'audio': 3"):
        ready("predict", path=str(path), predict_path=wrong)
    raw.pop("vision")
    with pytest.raises(ValueError, match=r"predict_path .*file.pkl, split test: vision is missing"):
        ready("predict", predict_path=str(write(tmp_path, raw)))


# checkpoints and settings


def test_a_checkpoint_with_another_number_of_classes_is_refused() -> None:
    data = ready(task="classification")
    with pytest.raises(ValueError, match=r"^classes must be that of the checkpoint, 5 of synthetic, got 3"):
        data.load_state_dict({**data.state_dict(), "classes": 5})


def test_a_checkpoint_of_other_data_is_refused() -> None:
    state = ready().state_dict()
    ready().load_state_dict(state)
    for settings, name in (
        ({"text": "tokens"}, "text"),
        ({"task": "classification"}, "task"),
        ({"generator": SyntheticSentiment(clips=(4, 4, 4), audio_width=7)}, "widths"),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be that of the checkpoint, .* of synthetic, got") as e:
            ready(**settings).load_state_dict(state)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "ranking"}, "task must be regression or classification, got 'ranking'"),
        ({"text": "words"}, "text must be features or tokens, got 'words'"),
        ({"masks": "none"}, "masks must be derived or oracle, got 'none'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultimodalSentiment(**settings)


def test_a_batch_that_is_larger_than_the_split() -> None:
    with pytest.raises(ValueError, match="batch_size must leave one batch for every device, got 31 for the 30 samples"):
        ready(batch_size=31).train_dataloader()


def test_setup_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready()
    monkeypatch.setattr(SyntheticSentiment, "generate", lambda self: pytest.fail("again"))
    data.setup("test")
    assert isinstance(data._samples["test"], Samples)


def test_a_file_without_a_test_split_trains_and_is_not_tested(tmp_path: Path) -> None:
    raw = mmsa()
    del raw["test"]
    data = MultimodalSentiment(str(write(tmp_path, raw)), batch_size=2)
    data.setup()
    assert data.splits == {"train": 5, "valid": 3}
    assert len(list(data.train_dataloader())) == 2
    for loader in (data.test_dataloader, data.predict_dataloader):
        with pytest.raises(
            ValueError, match=r"^path must be a file with the split test, got [^\n]+ with train, valid: add"
        ):
            loader()
