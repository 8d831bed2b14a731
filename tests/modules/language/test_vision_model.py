"""VisionLanguageModel: training on answers, what is frozen, checkpoints, slot accuracy, predictions."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from saccade.inference.huggingface.models import language_part
from saccade.modules import LoraSettings, VisionLanguageModel
from saccade.modules.language.vision_construction import tower_of
from saccade.modules.language.vision_model import SlotAccuracy
from tests.modules.language.tiny import trainer
from tests.modules.language.tiny_video import CONFIGS, TinyVideo, answer_of, built, video_data, video_model

FAMILIES = list(CONFIGS)


class _Losses(Callback):
    """Keep the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_what_the_clips_show(tmp_path: Path, family: str) -> None:
    data, module = TinyVideo(family), video_model(family, learning_rate=1e-2, max_answer_tokens=16)
    losses = _Losses()
    run = trainer(tmp_path, max_epochs=10, check_val_every_n_epoch=10, callbacks=[losses])
    run.fit(module, data)
    assert losses.values[0] == pytest.approx(math.log(len(data.tokenizer)), rel=0.1)
    assert losses.values[-1] < 0.1 * losses.values[0]
    assert run.callback_metrics["val_slot_accuracy"] == 1  # impossible without having seen the colours
    assert run.callback_metrics["val_perplexity"] == pytest.approx(float(run.callback_metrics["val_loss"].exp()))
    assert set(run.test(module, data, verbose=False)[0]) == {"test_loss", "test_perplexity", "test_slot_accuracy"}
    table = run.predict(module, data)
    assert table is not None
    assert [key for part in table for key in part["key"].tolist()] == list(range(8))  # type: ignore[call-overload]
    told = [text for part in table for text in part["answer"]]  # type: ignore[call-overload]
    assert [text.split()[:4] for text in told] == [answer_of(item).split()[:4] for item in range(8)]


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_one_of_transformers_on_the_answers_only(family: str) -> None:
    module, data = built(family)
    batch = data.batch([0, 5, 9, 2])
    inputs = {name: value for name, value in batch.items() if name not in ("prompt_length", "item")}
    losses, weights = module.token_losses(batch)
    assert weights.sum() == (batch["labels"] != -100).sum()
    assert torch.allclose((losses * weights).sum() / weights.sum(), module.model(**inputs).loss)
    # the mean of each row, so that a shift between losses and weights shows
    rows = [module.model(**_row(inputs, row)).loss for row in range(4)]
    assert torch.allclose((losses * weights).sum(1) / weights.sum(1), torch.stack(rows), atol=1e-5)
    assert losses.shape[1] < batch["labels"].shape[1] - data.batch([1])["prompt_length"].min() + 3


def _row(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """One clip of a batch, padding included."""
    clips = inputs["pixel_values_videos"]
    share = len(clips) // len(inputs["input_ids"])
    one = {name: value[row : row + 1] for name, value in inputs.items()}
    return {**one, "pixel_values_videos": clips[row * share : (row + 1) * share]}


def test_the_video_positions_are_stock_and_survive_a_generation() -> None:
    module, data = built("qwen2_5_vl", max_answer_tokens=4)
    batch = data.batch([0, 5, 9])
    before = module.token_losses(batch)[0]
    module.answers(batch, [1])
    assert module.model.model.rope_deltas is None  # type: ignore[union-attr]
    assert torch.equal(module.token_losses(batch)[0], before)
    without = {name: value for name, value in batch.items() if name != "mm_token_type_ids"}
    assert not torch.allclose(module.token_losses(without)[0], before, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_tower_stays_bit_equal(tmp_path: Path, family: str) -> None:
    module = video_model(family, freeze_vision=True, learning_rate=1e-2, slot_scenes=0)
    data = video_data(family)
    module.build_for(data)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer(tmp_path, max_steps=2).fit(module, data)
    tower = {id(parameter) for parameter in tower_of(module.model).parameters()}
    for name, parameter in module.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) in tower), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trained_weight_gets_a_gradient(family: str) -> None:
    """DDP would hang on one that does not."""
    module, data = built(family)
    losses, weights = module.token_losses(data.batch([0, 1]))
    (losses * weights).sum().backward()
    without = [name for name, value in module.model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    trained = sum(value.requires_grad for value in tower_of(module.model).parameters())
    assert trained > 10


@pytest.mark.parametrize("freeze", [False, True])
def test_lora_trains_the_adapters_only(tmp_path: Path, freeze: bool) -> None:
    module = video_model(lora=LoraSettings(rank=2), freeze_vision=freeze, learning_rate=1e-2, slot_scenes=0)
    data = video_data()
    module.build_for(data)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer(tmp_path, max_steps=2).fit(module, data)
    changed = {name for name, value in module.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any("visual" in name for name in changed) != freeze
    assert type(module.model).__name__ == "Qwen2_5_VLForConditionalGeneration"


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_loads_with_and_without_a_trainer(tmp_path: Path, family: str, lora: LoraSettings | None) -> None:
    module = video_model(family, lora=lora, freeze_vision=True, slot_scenes=0, max_answer_tokens=4)
    data = video_data(family)
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "last.ckpt")
    batch = data.batch([3, 4])
    expected = module.eval().token_losses(batch)[0]

    loaded = VisionLanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert torch.equal(loaded.token_losses(batch)[0], expected)
    assert loaded.lora == lora
    assert not any(parameter.requires_grad for parameter in tower_of(loaded.model).parameters())
    assert loaded.answers(batch, [0, 1]) == module.answers(batch, [0, 1])

    other = video_model(family, lora=lora, seed=5, slot_scenes=0)
    trainer(tmp_path).validate(other, data, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert torch.equal(other.eval().token_losses(batch)[0], expected)


def test_slot_accuracy_counts_the_first_scenes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight scenes in batches of four; five are asked for; the first three captions are right in one of two facts."""
    asked: list[int] = []

    def answers(self: VisionLanguageModel, batch: Any, rows: Any) -> list[str]:
        items = [int(batch["item"][row]) for row in rows]
        asked.extend(items)
        return [" ".join(answer_of(item).split()[: 2 if item < 3 else 4]) for item in items]

    monkeypatch.setattr(VisionLanguageModel, "answers", answers)
    module = video_model(slot_scenes=5)
    logged = trainer(tmp_path).validate(module, TinyVideo(), verbose=False)[0]
    assert asked == [0, 1, 2, 3, 4]
    assert logged["val_slot_accuracy"] == pytest.approx((3 * 1 + 2 * 2) / 10)
    for settings, can_score in (({"slot_scenes": 0}, True), ({"slot_scenes": 5}, False)):
        silent = trainer(tmp_path).validate(video_model(**settings), TinyVideo(can_score=can_score), verbose=False)[0]
        assert set(silent) == {"val_loss", "val_perplexity"}
    assert len(asked) == 5


def test_slot_accuracy_is_the_ratio_of_sums() -> None:
    metric = SlotAccuracy()
    metric.update(1, 2)
    metric.update(9, 10)
    assert metric.compute() == pytest.approx(10 / 12)
    metric.reset()
    assert metric.compute().isnan()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_do_not_depend_on_the_batch(family: str) -> None:
    """Shorter prompts are padded on the left, and every row keeps its own clip."""
    module, data = built(family, max_answer_tokens=6)
    together = module.answers(data.batch([0, 5, 11, 2]), [3, 1, 0])
    assert together == [module.answers(data.batch([item]), [0])[0] for item in (2, 5, 0)]
    assert len(set(together)) > 1


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    values = []
    for switched in (False, True):
        losses = _Losses()
        module = video_model(gradient_checkpointing=switched, slot_scenes=0)
        trainer(tmp_path, max_steps=3, callbacks=[losses], limit_val_batches=0).fit(module, TinyVideo())
        values.append(losses.values)
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_video_dropout_hides_in_training_and_is_gone_afterwards(tmp_path: Path) -> None:
    values = []
    for share, switched in ((0.0, False), (0.9, False), (0.9, False), (0.9, True)):
        losses = _Losses()
        module = video_model(video_dropout=share, gradient_checkpointing=switched, slot_scenes=0)
        trainer(tmp_path, max_steps=3, callbacks=[losses], limit_val_batches=0).fit(module, TinyVideo())
        assert not language_part(module.model)._forward_pre_hooks
        values.append(losses.values)
    plain, hidden, again, recomputed = values
    assert plain[0] != pytest.approx(hidden[0], rel=1e-6)
    assert hidden == again
    assert hidden == pytest.approx(recomputed, rel=1e-4)


def test_bf16_trains_and_answers(tmp_path: Path) -> None:
    module = video_model(max_answer_tokens=3, slot_scenes=2)
    run = trainer(tmp_path, max_steps=1, precision="bf16-true")
    run.fit(module, TinyVideo())
    assert module.model.dtype == torch.bfloat16
    assert "val_slot_accuracy" in run.validate(module, TinyVideo(), verbose=False)[0]
