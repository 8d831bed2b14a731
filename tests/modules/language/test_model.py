"""LanguageModel: training, checkpoints that load anywhere, resuming, and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from saccade.modules import LanguageModel, LoraSettings
from tests.modules.language.tiny import CONFIG, corpus, language_model, trainer


class _Losses(Callback):
    """Keep the loss of every step."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values[trainer.global_step] = float(outputs["loss"])


def test_training_lowers_the_loss_and_logs_exact_means(tmp_path: Path) -> None:
    data, module = corpus(tmp_path), language_model(learning_rate=1e-2, seed=0)
    run = trainer(tmp_path, max_epochs=2, limit_val_batches=1.0)
    losses = _Losses()
    run.callbacks.append(losses)
    run.fit(module, data)
    assert losses.values[1] == pytest.approx(math.log(len(data.tokenizer)), rel=0.05)
    assert list(losses.values.values())[-1] < 0.7 * losses.values[1]
    logged = run.validate(module, data, verbose=False)[0]
    module.eval()
    with torch.no_grad():
        values = torch.cat([module.token_losses(batch)[0].flatten() for batch in data.val_dataloader()])
    assert logged["val_loss"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert logged["val_perplexity"] == pytest.approx(math.exp(float(values.mean())), rel=1e-5)
    tested = run.test(module, data, verbose=False)[0]
    assert tested["test_perplexity"] == pytest.approx(math.exp(tested["test_loss"]), rel=1e-5)
    predicted = run.predict(module, data)
    assert predicted is not None
    losses_of_sequences = torch.cat([batch["loss"] for batch in predicted])  # type: ignore[index,call-overload]
    assert float(losses_of_sequences.mean()) == pytest.approx(tested["test_loss"], rel=1e-5)


def test_loss_is_the_one_of_transformers_and_leaves_padding_out() -> None:
    module = language_model(config={"vocab_size": 40}, seed=0)
    module.build()
    module.eval()
    tokens = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    expected = module.model(tokens, labels=tokens).loss
    assert torch.allclose(module.training_step({"input_ids": tokens}, 0), expected)
    mask = torch.ones_like(tokens)
    mask[:, 6:] = 0
    short = module.model(tokens[:, :6], labels=tokens[:, :6]).loss
    assert torch.allclose(module.training_step({"input_ids": tokens, "attention_mask": mask}, 0), short)
    predicted = module.predict_step({"input_ids": tokens, "attention_mask": mask}, 0)
    assert torch.allclose(predicted["loss"].mean(), short)
    assert torch.allclose(predicted["perplexity"].log(), predicted["loss"])


@pytest.mark.parametrize("stop", [5, 12, 16], ids=["mid-epoch", "epoch end", "second epoch"])
def test_resumed_training_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    def run(last: int, save_at: int | None, ckpt_path: str | None) -> tuple[dict[int, float], LanguageModel]:
        module = language_model(sublayer_dropout=0.5, learning_rate=1e-2, seed=3)
        callbacks: list[Callback] = [_Losses()]
        settings: dict[str, Any] = {}
        if save_at is not None:
            callbacks.append(ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=save_at))
            settings["enable_checkpointing"] = True
        # the schedule belongs to the whole run: stopping early must not shorten it
        runner = trainer(tmp_path, max_steps=20, max_epochs=-1, callbacks=callbacks, limit_train_batches=12, **settings)
        if last < 20:

            class Stop(Callback):
                def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
                    if trainer.global_step == last:
                        raise KeyboardInterrupt

            runner.callbacks.append(Stop())
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                runner.fit(module, corpus(tmp_path), ckpt_path=ckpt_path)
        else:
            runner.fit(module, corpus(tmp_path), ckpt_path=ckpt_path)
        losses = callbacks[0]
        assert isinstance(losses, _Losses)
        return losses.values, module

    whole, whole_module = run(20, None, None)
    run(stop + 1, stop, None)
    saved = tmp_path / "saved" / f"step={stop}.ckpt"
    rest, module = run(20, None, str(saved))
    assert sorted(rest) == list(range(stop + 1, 21))
    assert rest == {step: whole[step] for step in rest}
    for a, b in zip(whole_module.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_checkpoint_loads_with_and_without_a_trainer(tmp_path: Path, lora: LoraSettings | None) -> None:
    module = language_model(lora=lora, sublayer_dropout=0.3, seed=1)
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, corpus(tmp_path))
    run.save_checkpoint(tmp_path / "last.ckpt")
    module.eval()
    tokens = torch.randint(0, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    expected = module(tokens)

    loaded = LanguageModel.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert torch.equal(loaded(tokens), expected)
    assert loaded.lora == lora
    assert loaded.tokenizer is not None
    assert module.tokenizer is not None
    assert loaded.tokenizer.get_vocab() == module.tokenizer.get_vocab()
    loaded.save_pretrained(tmp_path / "exported")
    assert (tmp_path / "exported" / "tokenizer.json").is_file()

    other = language_model(lora=lora, seed=2)
    trainer(tmp_path).validate(other, corpus(tmp_path), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert torch.equal(other.eval()(tokens), expected)


def test_a_path_is_not_needed_to_load_a_checkpoint(tmp_path: Path) -> None:
    first = language_model(config={"vocab_size": 300}, seed=1)
    first.build()
    first.save_pretrained(tmp_path / "base")
    module = language_model(path=str(tmp_path / "base"))
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, corpus(tmp_path))
    run.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "base").rename(tmp_path / "moved")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "last.ckpt")
    for a, b in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_lora_trains_the_adapters_only(tmp_path: Path) -> None:
    module = language_model(lora=LoraSettings(rank=2, target_modules=["q_proj", "v_proj"]), seed=1)
    run = trainer(tmp_path, max_steps=3)
    run.fit(module, corpus(tmp_path))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    assert type(module.model).__name__ == "LlamaForCausalLM"


def test_sublayer_dropout_is_on_in_training_only_and_leaves_no_hooks(tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            seen.append(sum(len(part._forward_hooks) for part in pl_module.model.modules()))

    module = language_model(sublayer_dropout=0.9, seed=1)
    trainer(tmp_path, max_steps=2, callbacks=[Count()]).fit(module, corpus(tmp_path))
    left = sum(len(part._forward_hooks) for part in module.model.modules())
    assert seen == [left + 4, left + 4]
    assert module._dropout is not None
    assert module._dropout._keep is None


def test_sublayer_dropout_rises_over_the_first_half(tmp_path: Path) -> None:
    dropped: list[float] = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            keep = pl_module._dropout._keep
            if keep is not None:
                dropped.append(float(1 - keep.mean()))

    module = language_model(config={"num_hidden_layers": 8}, sublayer_dropout=1.0, seed=1)
    trainer(tmp_path, max_steps=40, max_epochs=-1, callbacks=[Watch()]).fit(module, corpus(tmp_path, batch_size=8))
    means = [sum(dropped[i : i + 10]) / 10 for i in (0, 10, 20, 30)]
    assert means == pytest.approx([0.11, 0.36, 0.5, 0.5], abs=0.1)


def test_bf16_precision_trains(tmp_path: Path) -> None:
    module = language_model(seed=1)
    trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, corpus(tmp_path))
    assert module.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "path or config must be given, got neither"),
        ({"config": CONFIG, "learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"config": CONFIG, "weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"config": CONFIG, "warmup_fraction": 2.0}, "warmup_fraction must be between 0 and 1, got 2.0"),
        ({"config": CONFIG, "final_fraction": -0.1}, "final_fraction must be between 0 and 1, got -0.1"),
        ({"config": CONFIG, "sublayer_dropout": 1.1}, "sublayer_dropout must be between 0 and 1, got 1.1"),
        ({"config": CONFIG, "schedule": "linear"}, "schedule must be cosine or constant, got 'linear'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LanguageModel(**settings)
    assert "\n" not in str(caught.value)


def test_a_path_goes_before_a_config(tmp_path: Path) -> None:
    first = language_model(config={"vocab_size": 300}, seed=1)
    first.build()
    first.save_pretrained(tmp_path / "base")
    module = LanguageModel(path=str(tmp_path / "base"), config={"model_type": "no such model"})
    module.build()
    for a, b in zip(module.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_data_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size of the model must be at least"):
        trainer(tmp_path, max_steps=1).fit(language_model(config={"vocab_size": 100}), corpus(tmp_path))
    with pytest.raises(ValueError, match="sequence_length must be at most 8, the model's context, got 16"):
        trainer(tmp_path, max_steps=1).fit(language_model(config={"max_position_embeddings": 8}), corpus(tmp_path))


def test_nothing_to_export_and_a_foreign_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model is not built yet"):
        language_model().save_pretrained(tmp_path / "x")
    with pytest.raises(ValueError, match=r"the checkpoint was not written by saccade\.modules\.LanguageModel"):
        language_model().on_load_checkpoint({})
