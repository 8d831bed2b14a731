"""T2DR: every switch trains, nothing leaks, checkpoints and text encoders work."""

import dataclasses
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from transformers import BertConfig, BertModel

from saccade.datamodules import NothingMissing, SyntheticSentiment
from saccade.datamodules.multimodal.batch import MODALITIES
from saccade.modules import (
    T2DR,
    LateFusion,
    LoraSettings,
    LossWeights,
    Optimization,
)
from saccade.modules.multimodal.base import DataFacts
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings
from tests.modules.multimodal.tiny import built, first_batch, longer, shuffled, steps, tiny_data, with_missing
from tests.support.processes import run_ranks

SMALL = {"width": 8, "heads": 2}
ARMS = {
    "default": {},
    **{f"intra {variant}": {"intra_attention": variant} for variant in ("none", "none+marker", "hard", "B", "C")},
    **{f"filling {filling}": {"filling": filling} for filling in ("zero", "mean", "full")},
    "uniform": {"scorer": False},
    "concatenation": {"fusion": "concatenation"},
    "no first tier": {"first_tier": False},
    "no second tier": {"second_tier": False},
    "two stages": {"stages": "two"},
    "no alignment": {"loss_weights": LossWeights(alignment=0)},
    "no complete view": {"loss_weights": LossWeights(complete=0, agreement=0)},
    "agreement alone": {"loss_weights": LossWeights(0, 0, 0, 0, complete=0)},
    "task only": {"loss_weights": LossWeights(0, 0, 0, 0, 0, 0)},
}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.mark.parametrize("arm", ARMS)
def test_every_switch_trains_all_of_its_parameters(arm, data):
    module = built(T2DR(**SMALL, **ARMS[arm]), data)
    trace = steps(module, data, 2)
    assert all(parameter.grad is not None for parameter in module.parameters()), "DDP would wait for it"
    assert all(torch.isfinite(torch.tensor(trace)))


@pytest.mark.parametrize("arm", ARMS)
def test_nothing_leaks_when_everything_is_erased(arm, data):
    """All content gone: samples of one length get one answer, whatever they said."""
    module, batch = built(T2DR(**SMALL, **ARMS[arm]), data), with_missing(first_batch(data), 1.0)
    assert not batch.present.any()
    with torch.no_grad():
        found = module(batch)
    assert bool(torch.isfinite(found.value).all())
    assert bool(torch.isfinite(found.weights).all())
    lengths = batch.modalities["text"].valid.sum(1)
    assert len(lengths.unique()) < len(lengths)
    for length in lengths.unique():
        alike = found.value[lengths == length]
        assert float(alike.max() - alike.min()) < 1e-5


@pytest.mark.parametrize("arm", ARMS)
def test_padding_and_order_do_not_matter(arm, data):
    module, batch = built(T2DR(**SMALL, **ARMS[arm]), data), with_missing(first_batch(data))
    batch.modalities["vision"].valid[3] = False  # a clip without any frame
    batch.modalities["vision"].available[3] = 0
    order = torch.randperm(len(batch))
    with torch.no_grad():
        wanted = module(batch)
        assert torch.allclose(module(longer(batch, 9)).value, wanted.value, atol=1e-6)
        assert torch.allclose(module(shuffled(batch, order)).value, wanted.value[order], atol=1e-6)
        assert torch.allclose(module(shuffled(batch, order[:1])).value, wanted.value[order[:1]], atol=1e-6)
    assert torch.allclose(wanted.weights.sum(1), torch.ones(len(batch)), atol=1e-5)


def test_content_of_missing_rows_padding_and_neighbours_do_not_matter(data):
    module, batch = built(T2DR(**SMALL), data), with_missing(first_batch(data))
    with torch.no_grad():
        wanted = module(batch).value
        for modality in batch.modalities.values():
            modality.values[modality.available == 0] = 77.0
        assert torch.allclose(module(batch).value, wanted, atol=1e-6)
        alone = with_missing(first_batch(data))
        for modality in alone.modalities.values():
            modality.available[1:] *= 0
        assert torch.allclose(module(alone).value[0], wanted[0], atol=1e-5)


def test_same_seed_same_losses(data):
    traces = [steps(built(T2DR(**SMALL, seed=5), data), data, 20) for _ in range(2)]
    assert traces[0] == traces[1]
    assert steps(built(T2DR(**SMALL, seed=6), data), data, 20) != traces[0]


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_complete_sample_is_a_fixed_target_that_is_judged_too(task):
    data = tiny_data(task=task)
    module = built(T2DR(**SMALL, loss_weights=LossWeights(alignment=0, complete=0.25, agreement=0.5)), data).eval()
    batch = with_missing(first_batch(data), 0.5, ("audio",))
    terms = module.losses(batch)
    value, whole = module(batch).value, module(batch.complete).value.detach()
    told = (value - whole).abs().mean()
    if task == "classification":
        told = -(whole.softmax(-1) * value.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(terms["agreement"], 0.5 * told, atol=1e-6)
    judged = sum(module.losses(dataclasses.replace(batch.complete, complete=None)).values())
    assert torch.allclose(terms["complete"], 0.25 * judged, atol=1e-6)
    # a target that moved would have a gradient of its own
    wanted = torch.autograd.grad(0.5 * told, list(module.head.parameters()))
    found = torch.autograd.grad(terms["agreement"], list(module.head.parameters()))
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(found, wanted, strict=True))


def test_two_stages_train_the_first_tier_alone_at_first(data):
    module = built(T2DR(**SMALL, stages="two"), data).train()
    batch = with_missing(first_batch(data), 0.3, ("audio",))
    sum(module.losses(batch).values()).backward()
    assert float(module.sfp.query.weight.grad.abs().sum()) == 0
    assert float(module.encoders["text"].pool.weight.grad.abs().sum()) > 0
    assert module.learning_rate_multiplier("encoders", 0.5) == pytest.approx(0.1)
    assert module.learning_rate_multiplier("encoders", 0.1) == module.learning_rate_multiplier("head", 0.5) == 1


def test_the_second_stage_trains_the_second_tier(tmp_path, data):
    """Of ten steps three are the first stage; the groups of the first tier go slower from then on."""
    module, seen = T2DR(**SMALL, stages="two"), []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            grown = float(pl_module.sfp.query.weight.grad.abs().sum()) > 0
            seen.append((grown, {round(group["lr"] / group["initial_lr"], 6) for group in optimizer.param_groups}))

    trainer(tmp_path, max_steps=10, callbacks=[Watch()]).fit(module, data)
    assert [grown for grown, _ in seen] == [False] * 3 + [True] * 7
    for step, (_, factors) in enumerate(seen):
        assert (len(factors) == 2) == (step >= 3)
        if step >= 3:
            assert min(factors) / max(factors) == pytest.approx(0.1, rel=1e-3)


def trainer(folder: Path, **settings) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def test_learns_and_comes_back_from_its_checkpoint(tmp_path):
    data = tiny_data(generator=SyntheticSentiment(clips=(256, 64, 64)), train_protocol=NothingMissing())
    module = T2DR(width=16, optimization=Optimization(learning_rate=4e-3), seed=1)
    run = trainer(tmp_path, max_epochs=20)
    run.fit(module, data)
    labels = torch.cat([batch.label for batch in data.val_dataloader()])
    constant = (labels - labels.median()).abs().mean()  # no constant does better
    assert float(run.callback_metrics["val_loss"]) < 0.85 * float(constant)  # with missing parts and modalities
    (scores,) = run.test(module, data, verbose=False)
    assert scores["test_mae"] < 0.85
    assert scores["test_corr"] > 0.75
    run.save_checkpoint(tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=True)
    loaded = T2DR.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    batch = first_batch(data)
    with torch.no_grad():
        assert torch.equal(loaded(batch).value, module.eval()(batch).value)
    assert loaded.optimization.learning_rate == 4e-3


def test_classes_are_predicted(tmp_path):
    data = tiny_data(task="classification")
    module = T2DR(**SMALL)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    (scores,) = run.test(module, data, verbose=False)
    assert {"test_accuracy", "test_f1", "test_loss"} <= set(scores)
    columns = module.predict_step(first_batch(data), 0)
    assert set(columns["prediction"].tolist()) <= {0, 1, 2}
    assert [name for name in columns if name.startswith("weight")] == [f"weight_{name}" for name in MODALITIES]


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
def test_a_text_encoder_reads_token_numbers(lora, tmp_path):
    config = BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    data = tiny_data(text="tokens")
    module = T2DR(**SMALL, text_encoder=TextEncoderSettings(str(tmp_path / "bert"), lora))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    trained = [name for name, item in module.named_parameters() if item.requires_grad and name.startswith("text_enc")]
    assert trained
    assert all("lora" in name for name in trained) == (lora is not None)
    rates = {group["lr"] for group in run.optimizers[0].param_groups}
    assert len(rates) >= 2
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = T2DR.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    with torch.no_grad():
        assert torch.equal(loaded(first_batch(data)).value, module.eval()(first_batch(data)).value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: T2DR(width=0), "width must be at least 1"),
        (lambda: T2DR(depth=0), "depth must be at least 1"),
        (lambda: T2DR(stages="three"), "stages must be joint or two"),
        (lambda: LossWeights(filling=-1), "loss_weights.filling must be at least 0"),
        (lambda: Optimization(learning_rate=0), "optimization.learning_rate must be above 0"),
        (lambda: TextEncoderSettings("x", LoraSettings(), frozen=True), "text_encoder.frozen must be false with lora"),
        (lambda: LateFusion(depth=0), "depth must be at least 1"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_wrong_data_is_one_line(data, tmp_path):
    with pytest.raises(ValueError, match=r"text_encoder must be given exactly if data\.text is tokens"):
        trainer(tmp_path, max_epochs=1).fit(T2DR(**SMALL), tiny_data(text="tokens"))
    module = T2DR(**SMALL, text_encoder=TextEncoderSettings(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match=r"text_encoder\.path must be an encoder"):
        trainer(tmp_path, max_epochs=1).fit(module, tiny_data(text="tokens"))
    with pytest.raises(ValueError, match="the model is not built yet"):
        _ = T2DR().task
    wider = tiny_data(generator=SyntheticSentiment(clips=(40, 8, 8), text_width=9))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(T2DR(**SMALL), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match="widths"):
        trainer(tmp_path).test(T2DR(**SMALL), wider, ckpt_path=tmp_path / "x.ckpt")


def test_facts_are_those_of_the_data(data):
    facts = DataFacts.of(data)
    assert facts.widths == {"text": 12, "audio": 4, "vision": 6}
    assert (facts.task, facts.label_range, facts.classes) == ("regression", 3.0, None)


def test_two_processes_train_and_agree(tmp_path):
    run_ranks("tests.modules.multimodal.ddp_script", tmp_path)
    one, two = (float((tmp_path / f"mae{count}").read_text()) for count in (1, 2))
    assert two == pytest.approx(one, abs=1e-5)
