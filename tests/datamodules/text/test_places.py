"""Every sequence that `predict` reads says from which file it is, and where in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saccade.datamodules import TextCorpus
from saccade.datamodules.loaders import PackedSequences
from saccade.datamodules.text.encoding import text_only
from saccade.datamodules.text.files import CorpusFile
from saccade.datamodules.text.places import NamedSequences, shown_names


@pytest.mark.parametrize("count", [40, 3], ids=["split by file", "every file cut"])
def test_the_tokens_of_a_sequence_are_those_of_its_place(tmp_path, count):
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    for number in range(count):
        lines = [f"{number} and {line} words\n" for line in range(number % 7 + 400 // count)]
        (folder / f"{number}.txt").write_text("".join(lines))
    corpus = TextCorpus(
        [str(tmp_path / "texts" / "**" / "*.txt")], vocab_size=280, sequence_length=8, batch_size=3,
        validation_fraction=0.2, test_fraction=0.3, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    corpus.setup()
    encoder = text_only(corpus.tokenizer)
    batches = list(corpus.predict_dataloader())
    assert [batch["input_ids"].tolist() for batch in batches] == [
        batch["input_ids"].tolist() for batch in corpus.test_dataloader()
    ]
    seen = []
    for batch in batches:
        for name, ids in zip(batch["ids"], batch["input_ids"].tolist(), strict=True):
            file, place = name.split(" token ")
            whole = encoder.encode((tmp_path / "texts" / file).read_text()).ids
            end = [*whole[int(place) :], corpus.tokenizer.eos_token_id]
            assert ids[: len(end)] == end[: len(ids)], name
            seen.append((file, int(place)))
    assert len(set(seen)) == len(seen) > 10
    assert len({file for file, _ in seen}) >= 3


def test_places_across_the_ends_of_documents():
    sequences = PackedSequences(np.arange(17), 4)  # begins at 0, 4, 8, 12; the last token is left out
    documents = np.array([[2, 0, 4], [0, 30, 9], [1, 0, 10], [0, 0, 17]])
    named = NamedSequences(sequences, ["a", "b", "c"], documents)
    assert named.ids == ["c token 0", "a token 30", "a token 34", "a token 2"]
    assert named[[3, 1]]["ids"] == ["a token 2", "a token 30"]
    assert named[[1]]["input_ids"].tolist() == [[4, 5, 6, 7]]
    assert len(named) == 4


def test_files_of_one_name_have_their_whole_path():
    files = [CorpusFile("x.txt", Path("/a/x.txt")), CorpusFile("x.txt", Path("b/x.txt")), CorpusFile("y", Path("b/y"))]
    assert shown_names(files) == ["/a/x.txt", "b/x.txt", "y"]
