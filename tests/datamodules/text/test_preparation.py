"""A corpus is written piece by piece, with the tokens of its texts, a tokenizer from all over it, and a bar."""

from contextlib import contextmanager

import numpy as np
import pytest

from saccade.datamodules.text import encoding, preparation
from saccade.datamodules.text.encoding import text_only
from saccade.datamodules.text.files import CorpusFile, part_of
from saccade.datamodules.text.preparation import TokenFile, examined, fill, training_sample
from saccade.datamodules.text.splitting import split
from tests.datamodules.text.tokenizers_of_families import FAMILIES


def _sources(folder, texts):
    files = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.txt"
        path.write_text(text, encoding="utf-8")
        files.append(CorpusFile(path.name, path))
    return examined(files)


def _split(sources, validation=0.2, test=0.2):
    return split([one.file.name for one in sources], [one.size for one in sources], validation, test, 0)


@pytest.mark.parametrize("pieces", [[], [0], [3, 0, 5], [100_000, 1]])
def test_a_token_file_is_an_array(tmp_path, pieces):
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 2**31 - 1, size, dtype=np.int32) for size in pieces]
    with TokenFile(tmp_path / "a.npy") as file:
        for piece in tokens:
            file.append(piece)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.dtype == np.int32
    assert read.tolist() == [token for piece in tokens for token in piece]


def test_the_tokens_are_those_of_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 200)
    monkeypatch.setattr(encoding, "_REACH", 100)
    monkeypatch.setattr(encoding, "_BATCH", 1000)
    texts = [f"file {number}: größe and 🙂\n" * (5 + 20 * (number % 7)) for number in range(40)]
    sources = _sources(tmp_path, texts)
    parts = _split(sources)
    assert parts.by_file
    tokenizer = FAMILIES["own"]()
    faults = fill(tmp_path, sources, parts, tokenizer, 300)
    assert (faults.unreadable, faults.other_cuts) == ([], 0)
    for part in ("train", "validation", "test"):
        mine = [text for number, text in enumerate(texts) if part_of(f"{number}.txt", 0.2, 0.2, 0) == part]
        wanted = [token for text in mine for token in [*text_only(tokenizer).encode(text).ids, tokenizer.eos_token_id]]
        assert np.load(tmp_path / f"{part}.npy").tolist() == wanted


def test_the_parts_of_one_file_join_to_its_text(tmp_path):
    text = "".join(f"line {number} of the only file\n" for number in range(3000))
    sources = _sources(tmp_path, [text])
    tokenizer = FAMILIES["own"]()
    fill(tmp_path, sources, _split(sources), tokenizer, 300)
    parts = [np.load(tmp_path / f"{part}.npy").tolist() for part in ("train", "validation", "test")]
    assert [part.count(tokenizer.eos_token_id) for part in parts] == [1, 1, 1]
    assert "".join(tokenizer.decode(part[:-1]) for part in parts) == text
    assert len(parts[0]) == pytest.approx(0.6 * sum(map(len, parts)), rel=0.01)


def test_a_tokenizer_is_trained_on_a_sample_of_the_training_text_only(tmp_path):
    text = "".join(f"train {number:06d}\n" for number in range(30_000)) + "held out\n" * 10_000
    sources = _sources(tmp_path, [text])
    parts = _split(sources, 0.1, 0.1)
    whole = "".join(training_sample(sources, parts))
    assert len(whole) == pytest.approx(0.8 * len(text), rel=0.01)
    assert "held" not in whole
    pieces = list(training_sample(sources, parts, most=100_000))
    assert 60_000 < sum(map(len, pieces)) < 140_000
    assert all(piece.startswith("train ") and piece.endswith("\n") for piece in pieces)
    spread = [int(piece[6:12]) for piece in pieces]
    assert spread[0] == 0
    assert spread == sorted(spread)
    assert spread[-1] > 20_000


def test_the_sample_is_smaller_where_every_word_is_new(tmp_path):
    rng = np.random.default_rng(0)
    usual = "the same few words in every line\n" * 12_000
    strange = "".join(bytes(rng.integers(97, 123, 40, dtype=np.uint8)).decode() + "\n" for _ in range(10_000))
    for text, least, most in ((usual, 316_000, 317_000), (strange, 80_000, 140_000)):
        sources = _sources(tmp_path, [text])
        pieces = list(training_sample(sources, _split(sources, 0.1, 0.1), most=10**6, distinct=100_000))
        assert least < sum(map(len, pieces)) < most
        assert text.index(pieces[-1][-40:]) > 0.7 * len(text) or text == usual  # from all over it


def test_a_file_that_is_too_short_for_a_training_part_trains_nothing(tmp_path):
    sources = _sources(tmp_path, ["a"])
    assert list(training_sample(sources, _split(sources, 0.1, 0.8))) == []


def test_an_error_in_a_file_reaches_the_caller_through_the_training(tmp_path):
    sources = _sources(tmp_path, ["words " * 50] * 3)
    sources[1].file.path.write_text("other")
    with pytest.raises(ValueError, match="paths must name files that do not change"):
        fill(tmp_path, sources, _split(sources), None, 270)


def test_bars_count_the_megabytes_that_are_read(tmp_path, monkeypatch):
    shown = []

    @contextmanager
    def bar(total, text, trainer, enabled):
        class Bar:
            steps = 0

            def advance(self, steps):
                self.steps += steps

        yield (one := Bar())
        shown.append((text, total, one.steps, enabled))

    monkeypatch.setattr(preparation, "progress_bar", bar)
    monkeypatch.setattr(preparation, "MEGABYTE", 1000)
    sources = _sources(tmp_path, ["words to count\n" * 1000] * 2)
    fill(tmp_path, sources, _split(sources), None, 270)
    assert shown == [
        ("looking for changes in the text (MB)", 30, 30, False),
        ("training the tokenizer (MB read)", 18, 18, False),
        ("encoding the text (MB)", 30, 30, False),
    ]
