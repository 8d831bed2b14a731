"""TextCorpus: packing is exact, parts are disjoint, wrong settings end with one clear line."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from saccade.datamodules import TextCorpus
from saccade.datamodules.text import corpus as corpus_file
from saccade.datamodules.text.corpus import default_cache_dir
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
        ({"paths": "texts/*.txt"}, r"paths must be a list of globs, got 'texts/\*\.txt': write it as \['texts"),
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
        (
            {"max_files": 1, "sequence_length": 64},
            r"sequence_length must be at most \d+, the tokens of the train part",
        ),
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
        raise error

    monkeypatch.setattr("saccade.datamodules.text.preparation.TokenFile.append", fail)
    for error in (RuntimeError("no space"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            _corpus(texts, tmp_path).setup()
        assert os.listdir(tmp_path / "text_corpus") == []


def test_two_processes_may_prepare_at_the_same_time(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _corpus(texts, tmp_path), _corpus(texts, tmp_path)
    kept: list[int] = []
    fill = corpus_file.fill

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(corpus_file, "fill", fill)
        second.setup()  # is ready before the first is
        kept.append(os.stat(tmp_path / "text_corpus" / second._key).st_ino)
        return fill(*arguments)

    monkeypatch.setattr(corpus_file, "fill", overtaken)
    first.setup()
    assert os.listdir(tmp_path / "text_corpus") == [first._key]
    assert first._key == second._key
    assert [os.stat(tmp_path / "text_corpus" / first._key).st_ino] == kept  # others may read it already
    for part in PARTS:
        assert np.array_equal(first._parts[part].sequences, second._parts[part].sequences)


def test_what_a_killed_process_left_is_removed_after_a_day(texts: Path, tmp_path: Path) -> None:
    for name, age in (("old", 90_000), ("new", 60)):
        half = tmp_path / "text_corpus" / f".key.{name}"
        half.mkdir(parents=True)
        (half / "train.npy").write_text("half")
        for path in (half / "train.npy", half):
            os.utime(path, (time.time() - age,) * 2)
    corpus = _corpus(texts, tmp_path)
    corpus.setup()
    assert sorted(os.listdir(tmp_path / "text_corpus")) == [".key.new", corpus._key]


def test_tokenizer_without_end_of_sequence_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["text"], 260)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer must have an eos_token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("count", "size"), [(1, 60_000), (2, 30_000), (5, 20_000), (20, 8_000)])
@pytest.mark.parametrize("trial", range(3))
def test_a_few_files_of_ones_own_can_be_fitted_and_tested(
    tmp_path: Path, count: int, size: int, trial: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(count):
        (folder / f"note {trial} {i}.txt").write_text(" ".join(f"word{(i * 7 + j) % 97}" for j in range(size // 7)))
    corpus = TextCorpus([str(folder / "*.txt")], vocab_size=300, sequence_length=32, cache_dir=str(tmp_path / "cache"))
    corpus.prepare_data()
    corpus.setup("fit")
    for loader in (corpus.train_dataloader(), corpus.val_dataloader(), corpus.test_dataloader()):
        assert len(loader) > 0


def test_the_split_inside_of_files_is_said_in_one_line(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(corpus_file, "rank_zero_info", said.append)
    _corpus(texts, tmp_path).setup()
    assert said == []
    (tmp_path / "one.txt").write_text("words of the only file " * 200)
    corpus = _corpus(texts, tmp_path, paths=[str(tmp_path / "one.txt")], validation_fraction=0.1, test_fraction=0.0)
    corpus.prepare_data()
    corpus.setup()
    assert said == [
        "saccade: the text cannot be split by file into parts of the wanted sizes (files: 1), so every file is cut into"
        " 0.9 of training text and 0.1 of validation text."
    ]


def test_fit_needs_no_test_part(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("words of the only file " * 200)
    settings = {"paths": [str(tmp_path / "one.txt")], "validation_fraction": 0.3, "test_fraction": 0.01}
    corpus = _corpus(texts, tmp_path, sequence_length=64, **settings)
    corpus.setup("fit")
    assert len(corpus.train_dataloader()) > 0
    corpus.setup("test")
    with pytest.raises(
        ValueError, match=r"^sequence_length must be at most \d+, the tokens of the test part, got 64: "
    ):
        corpus.test_dataloader()
    # and `test` needs no training text
    settings = {"paths": [str(tmp_path / "one.txt")], "validation_fraction": 0.001, "test_fraction": 0.9}
    corpus = _corpus(texts, tmp_path, sequence_length=256, **settings)
    corpus.setup("test")
    assert len(corpus.test_dataloader()) > 0
    with pytest.raises(ValueError, match="sequence_length must be at most"):
        corpus.setup("fit")


def test_too_little_text_is_said(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("a")
    with pytest.raises(
        ValueError, match=r"^paths must name files with more text, got 0 tokens for the validation part"
    ):
        _corpus(texts, tmp_path, paths=[str(tmp_path / "tiny.txt")], sequence_length=2).setup()


@pytest.mark.parametrize("trained", [True, False])
def test_text_that_spells_special_tokens_stays_text(tmp_path: Path, trained: bool) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    text = "\ufeff<|end|> and <|pad|>, <|begin|><|end|>\nin a text about tokens\n"
    for i in range(30):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    if not trained:
        train_tokenizer(["other words"], 270).save_pretrained(tmp_path / "saved")
    corpus = _corpus(folder, tmp_path, tokenizer=None if trained else str(tmp_path / "saved"))
    corpus.setup()
    stream = corpus._parts["train"].sequences.reshape(-1).tolist()
    tokenizer = corpus.tokenizer
    documents = [[]]
    for token in stream:
        if token == tokenizer.eos_token_id:
            documents.append([])
        else:
            documents[-1].append(token)
    assert {tokenizer.decode(document) for document in documents[:-1]} == {text[1:]}
    assert not {tokenizer.pad_token_id, tokenizer.bos_token_id} & set(stream)
    merged = [token for token in tokenizer.get_vocab() if "<|end" in token or "end|>" in token]
    assert merged == ["<|end|>"]


def test_files_that_are_no_utf8_are_named_with_their_line(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(corpus_file, "rank_zero_warn", said.append)
    (tmp_path / "latin.txt").write_bytes(b"plain\n" * 50 + "gr\u00f6\u00dfe\n".encode("latin-1") * 50)
    (tmp_path / "good.txt").write_text("plain\n" * 100)
    _corpus(texts, tmp_path, paths=[str(tmp_path / "*.txt")]).setup()
    assert said == [
        f"saccade: 1 of 2 files in paths are not UTF-8, for example {tmp_path / 'latin.txt'}, line 51: invalid bytes"
        " are read as U+FFFD. Convert the files, or leave them out."
    ]
