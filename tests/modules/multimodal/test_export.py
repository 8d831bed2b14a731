"""An exported program says what the model says, for other sizes, lengths and masks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import BertConfig, BertModel

from saccade.callbacks import ModelExport
from saccade.datamodules.multimodal.batch import Modality
from saccade.modules import T2DR, CrossmodalTransformer, LateFusion, LNLNLike, LoraSettings
from saccade.modules.multimodal import export
from saccade.modules.multimodal.export import load_exported
from saccade.modules.multimodal.layers.text_encoder import TextEncoderSettings
from tests.modules.multimodal.tiny import built, first_batch, shuffled, tiny_data, with_missing

SMALL = {"width": 8, "heads": 2, "depth": 1}
# one of each kind of layer, and classes; tracing takes seconds
MODELS = {
    "A": (lambda: T2DR(**SMALL), "classification"),
    "C": (lambda: T2DR(**SMALL, intra_attention="C"), "regression"),
    "CrossmodalTransformer": (lambda: CrossmodalTransformer(**SMALL), "regression"),
    "LNLNLike": (lambda: LNLNLike(**SMALL), "regression"),
}


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.mark.parametrize("name", MODELS)
def test_program_equals_model(name, tmp_path):
    made, task = MODELS[name]
    data = tiny_data(eval_batch_size=13, task=task)
    module = built(made(), data).train()
    module.save_pretrained(tmp_path / "model")
    assert module.training
    module.eval()
    program = load_exported(tmp_path / "model")
    parts = [
        with_missing(batch, 0.4, present)
        for batch in data.test_dataloader()  # of 13, and of what is left, each with lengths of its own
        for present in (("text", "audio", "vision"), ("vision",))
    ]
    for part in (*parts, *one_sample(first_batch(data))):
        with torch.no_grad():
            wanted, found = module(part), program(part)
        assert found[0].shape == wanted.value.shape
        assert torch.allclose(found[0], wanted.value, atol=1e-6)
        if wanted.weights is not None:
            assert torch.allclose(found[1], wanted.weights, atol=1e-6)
    settings = json.loads((tmp_path / "model" / "settings.json").read_text())
    assert settings["widths"] == data.widths
    assert len(settings["inputs"]) == 12
    assert settings["classes"] == {"classification": 3, "regression": None}[task]
    assert wanted.value.shape == {"classification": (1, 3), "regression": (1,)}[task]


def one_sample(batch):
    """Sizes that tracing likes to take for constants: one sample, also of one position that is there by halves."""
    one = shuffled(batch, torch.tensor([5]))
    short = {
        name: Modality(*(item[:, 1:2] for item in (part.values, part.valid, part.available * 0.5, part.special)))
        for name, part in one.modalities.items()
    }
    return one, replace(one, modalities=short)


def bert(folder: Path) -> str:
    config = BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def test_a_fit_ends_with_a_program_that_contains_the_text_encoder(tmp_path):
    """With its adapters."""
    data = tiny_data(text="tokens")
    settings = TextEncoderSettings(bert(tmp_path / "bert"), LoraSettings(rank=2))
    module = built(LateFusion(**SMALL, text_encoder=settings), data)
    for name, parameter in module.text_encoder.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()  # adapters that have learned something
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, max_steps=2,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[ModelExport()],
    )  # fmt: skip
    trainer.fit(module, data)
    (program,) = tmp_path.rglob("model.pt2")
    batch = with_missing(first_batch(data))
    with torch.no_grad():
        assert torch.allclose(load_exported(program.parent)(batch)[0], module.eval()(batch).value, atol=1e-5)


def test_what_cannot_be_traced_is_a_notice(data, tmp_path, monkeypatch):
    """A training that went well does not fail at its last step; and what is there already is left alone."""
    module = built(LateFusion(**SMALL), data).train()

    def untraceable(batch):
        return batch.modalities["text"].values.sum().item() + module.head

    monkeypatch.setattr(module, "forward", untraceable)
    with pytest.warns(UserWarning, match=r"model\.pt2 is not exported") as caught:
        module.save_pretrained(tmp_path / "model")
    assert all("\n" not in str(item.message) for item in caught if "exported" in str(item.message))
    assert list(tmp_path.iterdir()) == []
    assert module.training


def test_errors_are_one_line(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"folder must contain model\.pt2"):
        load_exported(tmp_path)
    with pytest.raises(ValueError, match="the model is not built yet"):
        T2DR().save_pretrained(tmp_path / "x")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(export, "_program", lambda *_: None)  # tracing takes seconds
    with pytest.raises(ValueError, match="cannot write "):
        built(LateFusion(**SMALL), data).save_pretrained(tmp_path / "file" / "model")
