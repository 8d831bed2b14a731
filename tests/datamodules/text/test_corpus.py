"""TextCorpus: packing is exact, parts are disjoint, wrong settings end with one clear line."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from saccade.datamodules import TextCorpus
from saccade.datamodules.text.corpus import default_cache_dir, encode
from saccade.datamodules.text.files import PARTS
from saccade.datamodules.text.tokenization import load_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small files whose texts round trip only if nothing is lost: blanks, umlauts, emoji, control characters."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        (folder / f"{i:02d}.txt").write_bytes(
            f"file {i}:\n\tdef f{i} ( x ) .\n  größe = '🙂'\r\n{'word ' * i}\x00".encode()
        )
    return folder


def _corpus(texts: Path, cache: Path, **settings: Any) -> TextCorpus:
    defaults: dict[str, Any] = {
        "paths": [str(texts / "*.txt")],
        "vocab_size": 300,
        "sequence_length": 16,
        "batch_size": 2,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "cache_dir": str(cache),
    }
    return TextCorpus(**{**defaults, **settings})


def test_packed_parts_decode_to_whole_files_of_one_part_each(texts: Path, tmp_path: Path) -> None:
    corpus = _corpus(texts, tmp_path)
    corpus.prepare_data()
    corpus.setup()
    originals = {path.read_bytes().decode() for path in texts.iterdir()}
    owners: dict[str, str] = {}
    for part in PARTS:
        stream = corpus._parts[part].sequences.reshape(-1).tolist()
        text = corpus.tokenizer.decode(stream)
        *documents, rest = text.split(corpus.tokenizer.eos_token)
        assert documents
        for document in documents:
            assert document in originals
            assert owners.setdefault(document, part) == part
        # the end that fills no sequence is cut off, and only that
        assert rest == "" or any(original.startswith(rest.rstrip("\ufffd")) for original in originals)
    assert len(owners) >= len(originals) - 3


def test_batches_have_the_promised_shape(texts: Path, tmp_path: Path) -> None:
    corpus = _corpus(texts, tmp_path)
    corpus.setup()
    for loader in (corpus.train_dataloader(), corpus.val_dataloader(), corpus.test_dataloader()):
        batches = list(loader)
        assert batches
        for batch in batches:
            assert batch["input_ids"].shape[1] == 16
            assert int(batch["input_ids"].max()) < len(corpus.tokenizer)
    assert len(corpus.predict_dataloader()) == len(corpus.test_dataloader())


def test_prepared_corpus_is_reused_and_follows_content_and_settings(texts: Path, tmp_path: Path) -> None:
    first, again = _corpus(texts, tmp_path), _corpus(texts, tmp_path)
    first.setup()
    folder = tmp_path / "text_corpus" / first._key
    stamp = (folder / "train.npy").stat().st_mtime_ns
    again.setup()
    assert again._key == first._key
    assert (folder / "train.npy").stat().st_mtime_ns == stamp
    for settings in ({"seed": 1}, {"vocab_size": 290}, {"max_files": 30}):
        other = _corpus(texts, tmp_path, **settings)
        other.setup()
        assert other._key != first._key
    # another length or batch cuts the same stream
    longer = _corpus(texts, tmp_path, sequence_length=32, batch_size=3)
    longer.setup()
    assert longer._key == first._key
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_tokenizer_comes_back_the_same_and_separates_documents(texts: Path, tmp_path: Path) -> None:
    corpus = _corpus(texts, tmp_path)
    corpus.setup()
    corpus.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "  def größe ( x ) . 🙂\n<|end|>"
    assert loaded.get_vocab() == corpus.tokenizer.get_vocab()
    assert loaded(text)["input_ids"] == corpus.tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)
    given = _corpus(texts, tmp_path, tokenizer=str(tmp_path / "saved"))
    given.setup()
    assert np.array_equal(given._parts["train"].sequences, corpus._parts["train"].sequences)


def test_tokenizer_is_trained_on_the_training_part_only(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text("plain words " * 20)
    corpus = _corpus(folder, tmp_path / "a")
    corpus.setup()
    from saccade.datamodules.text.files import matching_files, part_of

    for file in matching_files([str(folder / "*.txt")]):
        if part_of(file.name, 0.2, 0.2, 0) != "train":
            file.path.write_text("zyxwvut " * 500)
    changed = _corpus(folder, tmp_path / "b")
    changed.setup()
    assert changed._key != corpus._key
    assert changed.tokenizer.get_vocab() == corpus.tokenizer.get_vocab()


def test_encode_ends_every_document() -> None:
    tokenizer = train_tokenizer(["some text to learn from"], 270)
    ids = encode(tokenizer, ["one", "", "two"]).tolist()
    assert [i for i in ids if i == tokenizer.eos_token_id] == [tokenizer.eos_token_id] * 3
    assert tokenizer.decode(ids) == "one<|end|><|end|>two<|end|>"
    assert encode(tokenizer, []).shape == (0,)


def test_cache_honours_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "saccade"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_cache_dir() == Path("/home/somebody/.cache/saccade")


def test_checkpoint_of_another_tokenizer_is_refused(texts: Path, tmp_path: Path) -> None:
    first, other = _corpus(texts, tmp_path), _corpus(texts, tmp_path, vocab_size=280)
    first.setup()
    other.setup()
    first.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="tokenizer must be that of the checkpoint"):
        other.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": []}, "paths must name files, got an empty list"),
        ({"vocab_size": 200}, "vocab_size must be at least 260, got 200"),
        ({"sequence_length": 1}, "sequence_length must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_files": 0}, "max_files must be at least 1, got 0"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"validation_fraction": 0.0}, "validation_fraction must be above 0 and below 1"),
        ({"test_fraction": 0.9}, "test_fraction must be below 0.8 with validation_fraction=0.2, got 0.9"),
        ({"test_fraction": -0.1}, "test_fraction must be between 0 and 1, got -0.1"),
    ],
)
def test_impossible_settings_are_refused_at_once(
    texts: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _corpus(texts, tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": ["/nowhere/*.txt"]}, "paths must match files, got '/nowhere/"),
        ({"max_bytes": 1}, "max_bytes must leave at least one file"),
        ({"max_files": 1}, "validation_fraction must leave files for the validation part, got none of 1"),
        (
            {"sequence_length": 100_000},
            r"sequence_length must be at most \d+, the tokens of the train part, got",
        ),
        ({"tokenizer": "/nowhere"}, "cannot load tokenizer '/nowhere'"),
    ],
)
def test_impossible_data_is_refused_before_anything_is_written(
    texts: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _corpus(texts, tmp_path, **settings).setup()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob(".unfinished*"))


def test_missing_test_part_and_too_large_batch_are_refused(texts: Path, tmp_path: Path) -> None:
    corpus = _corpus(texts, tmp_path, test_fraction=0.0, batch_size=1000)
    corpus.setup()
    with pytest.raises(ValueError, match="test_fraction must be above 0 to read the test part"):
        corpus.test_dataloader()
    with pytest.raises(ValueError, match="batch_size must leave one batch for every device, got 1000"):
        corpus.train_dataloader()


def test_unwritable_cache_is_named(texts: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(ValueError, match=r"cannot write .*: set cache_dir or XDG_CACHE_HOME to"):
        _corpus(texts, blocked).setup()


def test_failure_while_filling_leaves_no_folder(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr("saccade.datamodules.text.corpus.encode", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        _corpus(texts, tmp_path).setup()
    assert os.listdir(tmp_path / "text_corpus") == []


def test_tokenizer_without_end_of_sequence_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["text"], 260)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer must have an eos_token"):
        load_tokenizer(str(tmp_path))
