"""An exported Retriever: its files, and its vectors where sentence-transformers is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast

from saccade.modules.lora import LoraSettings
from saccade.modules.retrieval.retriever import Retriever
from tests.support.processes import TIME_LIMIT, environment

TEXTS = ["apples and rivers", "the river runs past the trains of steam", "apples", "trains"]
MIXED = [*TEXTS, "信息检索 and apples"]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="needs sentence-transformers"
)


@pytest.fixture
def bert(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def changed(module, scale=0.1):
    """As training leaves it: no weight is what it was."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * scale)
    return module


def hashed():
    module = Retriever(rows=512, width=8)
    module.encoder.fit(TEXTS)
    return changed(module)


def encoded(folders):
    """What sentence-transformers makes of folders, in a process of its own in which Saccade is not found."""
    code = (
        "import json, sys\n"
        "sys.modules['saccade'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"for folder, trusted in {folders!r}:\n"
        "    model = SentenceTransformer(folder, device='cpu', trust_remote_code=trusted)\n"
        f"    print('found', json.dumps([model.encode({TEXTS!r}).tolist(), model.similarity_fn_name]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment() | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        timeout=TIME_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("found ") for line in done.stdout.splitlines() if line.startswith("found ")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_the_files_of_a_pretrained_encoder(bert, tmp_path, pooling, normalize):
    module = changed(Retriever(bert, pooling=pooling, normalize=normalize, max_length=7))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").touch()
    module.save_pretrained(folder)
    assert not (folder / "old").exists()
    modules = json.loads((folder / "modules.json").read_text())
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    assert [item["type"].rpartition(".")[2] for item in modules] == kinds
    assert all((folder / item["path"]).is_dir() for item in modules)
    settings = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert (settings["pooling_mode_cls_token"], settings["pooling_mode_mean_tokens"]) == (
        pooling == "cls", pooling == "mean",
    )  # fmt: skip
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 7
    assert torch.equal(Retriever(str(folder), pooling=pooling, normalize=normalize).encode(TEXTS[2:]),
                       module.encode(TEXTS[2:]))  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_lora_is_merged(bert, tmp_path):
    module = changed(Retriever(bert, lora=LoraSettings(rank=2, target_modules=["value"])), scale=1.0)
    module.save_pretrained(tmp_path / "out")
    again = Retriever(str(tmp_path / "out"))
    assert torch.allclose(again.encode(TEXTS), module.encode(TEXTS), atol=1e-6)
    assert not torch.allclose(Retriever(bert).encode(TEXTS), module.encode(TEXTS), atol=1e-3)
    assert not any("lora" in name for name in AutoModel.from_pretrained(tmp_path / "out").state_dict())


def test_a_hashed_encoder_runs_from_its_folder_alone(tmp_path):
    module = hashed()
    module.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "__init__.py").touch()
    code = (
        "import json, sys\n"
        "sys.modules['saccade'] = None\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from out.hashed_sentences import HashedSentences\n"
        f"model = HashedSentences.load({str(tmp_path / 'out')!r})\n"
        f"found = model(model.preprocess({MIXED!r}))['sentence_embedding']\n"
        "print(json.dumps(found.tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(torch.tensor(json.loads(done.stdout)), module.encode(MIXED))
    listed = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert [item["type"] for item in listed] == ["hashed_sentences.HashedSentences"]


@needs_package
def test_sentence_transformers_gives_the_same_vectors(bert, tmp_path):
    made = {
        "mean": (changed(Retriever(bert)), "cosine", 1e-5),
        "cls": (changed(Retriever(bert, pooling="cls", normalize=False)), "dot", 1e-5),
        "cut": (changed(Retriever(bert, max_length=4)), "cosine", 1e-5),
        "hashed": (hashed(), "cosine", 1e-6),
    }
    for name, (module, _, _) in made.items():
        module.save_pretrained(tmp_path / name)
    # only what is not sentence-transformers' own code has to be trusted
    found = encoded([(str(tmp_path / name), name == "hashed") for name in made])
    for (module, measure, error), (vectors, said) in zip(made.values(), found, strict=True):
        assert said == measure
        assert torch.allclose(torch.tensor(vectors), module.encode(TEXTS), atol=error)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cannot write "):
        hashed().save_pretrained(tmp_path / "file" / "out")
