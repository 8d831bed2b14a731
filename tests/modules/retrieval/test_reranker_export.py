"""An exported reranker scores as the trained one does, with this package and with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from saccade.modules.lora import LoraSettings
from saccade.modules.retrieval.reranker import Reranker
from tests.modules.retrieval.hugging_face_models import bert, t5

TEXTS = ["red houses in the old town", "green boats in the new town", "blue boats", "houses"]


def changed(module):
    """As training leaves it: no weight that learns is what it was."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    return module


def test_features(tmp_path):
    module = changed(Reranker(width=4, hidden=3))
    module.save_pretrained(tmp_path / "out")
    again = Reranker.from_pretrained(tmp_path / "out")
    for reranker in (module, again):
        reranker.prepare({"here": TEXTS}, "here")
    assert again.score("red houses", TEXTS) == module.score("red houses", TEXTS)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.safetensors", "reranker.json"]


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, target_modules=["query"])], ids=["whole", "lora"])
def test_logit(tmp_path, lora):
    module = changed(Reranker(bert(tmp_path / "base", TEXTS), max_length=16, lora=lora))
    module.save_pretrained(tmp_path / "out")
    again = Reranker.from_pretrained(tmp_path / "out")
    assert (again.style, again.max_length) == ("logit", 16)
    assert again.score("red houses", TEXTS) == pytest.approx(module.score("red houses", TEXTS), abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert plain.config.num_labels == 1
    assert not any("lora" in name for name in plain.state_dict())


@pytest.mark.parametrize("scaled", [True, False], ids=["T5", "T5 1.1"])
@pytest.mark.parametrize("names", [None, ["lm_head", "q"]], ids=["whole", "lora on the head"])
def test_seq2seq(tmp_path, scaled, names):
    """T5 shares its embeddings and scales the outputs; T5 1.1 and Flan-T5 have a head of their own and do not scale."""
    path = Path(t5(tmp_path / "base", TEXTS))
    if not scaled:
        settings = json.loads((path / "config.json").read_text())
        settings |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
        (path / "config.json").write_text(json.dumps(settings))
    lora = None if names is None else LoraSettings(rank=2, target_modules=names)
    module = changed(Reranker(str(path), "seq2seq", max_length=24, lora=lora))
    module.save_pretrained(tmp_path / "out")
    again = Reranker.from_pretrained(tmp_path / "out")
    assert again.score("red houses", TEXTS) == pytest.approx(module.score("red houses", TEXTS), abs=1e-5)
    assert AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").config.scale_decoder_outputs == scaled


def test_errors_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^folder must contain reranker\.json, got "):
        Reranker.from_pretrained(tmp_path)
    Reranker(width=4).save_pretrained(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "reranker.json").read_text())
    (tmp_path / "out" / "reranker.json").write_text(json.dumps(settings | {"features": ["bm25"]}))
    with pytest.raises(ValueError, match=r"^features of the reranker in .* must be bm25, cosine"):
        Reranker.from_pretrained(tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cannot write "):
        Reranker(width=4).save_pretrained(tmp_path / "file" / "out")
