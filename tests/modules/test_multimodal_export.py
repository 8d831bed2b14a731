"""An exported program says what the model says, for other sizes, lengths and masks."""

import json

import pytest
import torch
from transformers import BertConfig, BertModel

from saccade.modules import T2DR, CrossmodalTransformer, LateFusion, LNLNLike
from saccade.modules.layers.text_encoder import TextEncoderSettings
from saccade.modules.multimodal_export import load_exported
from tests.modules.tiny_multimodal import built, first_batch, tiny_data, with_missing

SMALL = {"width": 8, "heads": 2}
# one of each kind of layer; tracing takes seconds
MODELS = {
    "A": lambda: T2DR(**SMALL),
    "C": lambda: T2DR(**SMALL, intra_attention="C"),
    "CrossmodalTransformer": lambda: CrossmodalTransformer(**SMALL),
    "LNLNLike": lambda: LNLNLike(**SMALL),
}


@pytest.fixture(scope="module")
def data():
    return tiny_data(eval_batch_size=13)


@pytest.mark.parametrize("name", MODELS)
def test_program_equals_model(name, data, tmp_path):
    module = built(MODELS[name](), data).train()
    module.save_pretrained(tmp_path / "model")
    assert module.training
    module.eval()
    program = load_exported(tmp_path / "model")
    for batch in data.test_dataloader():  # of 13, and of what is left, each with lengths of its own
        for present in (("text", "audio", "vision"), ("vision",)):
            part = with_missing(batch, 0.4, present)
            with torch.no_grad():
                wanted, found = module(part), program(part)
            assert torch.allclose(found[0], wanted.value, atol=1e-6)
            if wanted.weights is not None:
                assert torch.allclose(found[1], wanted.weights, atol=1e-6)
    settings = json.loads((tmp_path / "model" / "settings.json").read_text())
    assert settings["widths"] == data.widths
    assert len(settings["inputs"]) == 12


def test_text_encoder_is_in_the_program(tmp_path):
    config = BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    data = tiny_data(text="tokens")
    module = built(T2DR(**SMALL, text_encoder=TextEncoderSettings(str(tmp_path / "bert"))), data)
    module.save_pretrained(tmp_path / "model")
    batch = with_missing(first_batch(data))
    with torch.no_grad():
        assert torch.allclose(load_exported(tmp_path / "model")(batch)[0], module(batch).value, atol=1e-5)


def test_errors_are_one_line(data, tmp_path):
    with pytest.raises(ValueError, match=r"holds no model\.pt2"):
        load_exported(tmp_path)
    with pytest.raises(ValueError, match="model: it is not built yet"):
        T2DR().save_pretrained(tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the model"):
        built(LateFusion(**SMALL), data).save_pretrained(tmp_path / "file" / "model")
