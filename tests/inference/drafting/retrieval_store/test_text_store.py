"""Stores on the disk: what they find, what they refuse, and that the file is nothing but data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saccade.inference.drafting.retrieval_store import text_store
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalRules, RetrievalStore
from saccade.inference.drafting.retrieval_store.text_store import StoredText, TextStore
from tests.support.models import tiny_model


class Words:
    """A tokenizer, as far as a store looks at it."""

    def __init__(self, words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


WORDS = Words("abcdefgh")


def store_of(*texts: list[int]) -> TextStore:
    return TextStore.of([StoredText(text) for text in texts], WORDS)


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=4),
    tail=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    largest=st.integers(1, 4),
)
def test_the_table_finds_what_a_search_finds(texts: list[list[int]], tail: list[int], largest: int) -> None:
    store, wanted = store_of(*texts), (0, [])
    for text in texts:
        for size in range(1, min(largest, len(tail)) + 1):
            for end in range(size, len(text)):
                if text[end - size : end] == tail[-size:] and size >= wanted[0]:
                    wanted = size, text[end : end + 5]
    size, end = store.match(tail, largest)
    assert (size, store.followers(end, 5) if size else []) == wanted


def test_the_longest_match_counts_wherever_it_is() -> None:
    store = RetrievalStore(RetrievalRules("ngram"), store_of([3, 1, 2, 7, 7], [2, 6]))
    store.extend([5, 2, 4, 4, 1, 2])
    assert store.find(3) == [7, 7]  # two tokens in the store, one in the text
    store.extend([4, 4, 1, 2])
    assert store.find(3) == [4, 4, 1]
    assert store.text.tokens == [5, 2, 4, 4, 1, 2, 4, 4, 1, 2]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = TextStore.of([StoredText([1, 2, 3], prompt=[4, 5])], WORDS)
    saved.save(tmp_path / "new" / "texts.safetensors")
    loaded = TextStore.load(tmp_path / "new" / "texts.safetensors")
    assert (loaded.tokens == saved.tokens).all()
    assert (loaded.tokenizer, loaded.prompts) == (saved.tokenizer, saved.prompts)
    assert loaded.match([1], 3) == (1, 1)
    loaded.check_tokenizer(WORDS)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["texts.safetensors"]


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_that_is_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "texts.safetensors"
    store_of([1, 2, 3]).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"^store .*texts.safetensors is cut off or damaged \(.*\): build it again"):
        TextStore.load(path)


def test_texts_that_do_not_end(tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    store_of([1, 2, 3]).save(path)
    tokens = load_file(path)["tokens"]
    header = {"format": "1", "tokenizer": "", "prompts": "[]"}
    save_file({"tokens": tokens[:-1].contiguous()}, path, header)
    with pytest.raises(ValueError, match=r"cut off or damaged \(its texts do not end\)"):
        TextStore.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^store must be an existing file, got .*nowhere: build it again"):
        TextStore.load(tmp_path / "nowhere")
    save_file({"weight": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"is no store of texts of format 1: build it again"):
        TextStore.load(tmp_path / "model.safetensors")
    (tmp_path / "store.pkl").write_bytes(b"\x80\x04cposix\nsystem\n.")
    with pytest.raises(ValueError, match=r"is cut off or damaged"):
        TextStore.load(tmp_path / "store.pkl")


def test_a_store_of_another_tokenizer() -> None:
    store = store_of([1, 2, 7])
    with pytest.raises(ValueError, match=r"^the store was made with another tokenizer than the model's: build it from"):
        store.check_tokenizer(Words("abcdefhg"))
    with pytest.raises(ValueError, match=r"^the store holds token 7 and the model has 7 token ids, so it was"):
        store.check_model(tiny_model(vocabulary=7))
    store.check_model(tiny_model(vocabulary=8))


def test_the_tokenizer_in_the_models_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = store_of([1, 2, 7]), tiny_model(vocabulary=8)
    model.name_or_path = str(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    monkeypatch.setattr(text_store.AutoTokenizer, "from_pretrained", lambda folder: Words("abcdefhg"))
    with pytest.raises(ValueError, match=r"^the store was made with another tokenizer than the model's: build it from"):
        store.check_model(model)
    monkeypatch.setattr(text_store.AutoTokenizer, "from_pretrained", lambda folder: WORDS)
    store.check_model(model)


def test_no_text_is_no_store() -> None:
    with pytest.raises(ValueError, match=r"^texts must hold at least one token, got none: give texts to copy from\.$"):
        store_of([])


def test_a_store_that_knows_the_answers_is_refused() -> None:
    prompt, answer = list(range(10, 20)), list(range(30, 45))
    store = TextStore.of([StoredText([1, 2, *answer, 3], prompt), StoredText([*range(50, 70)])], WORDS)
    with pytest.raises(ValueError, match=r"^the store knows prompt 1 of those that are measured, so it would copy the"):
        store.check_unseen([[1, 2, 3], prompt])
    with pytest.raises(ValueError, match=r"knows prompt 0"):
        store.check_unseen([list(range(52, 66))])
    with pytest.raises(ValueError, match=r"knows answer 0"):
        store.check_unseen([], [answer])
    store.check_unseen([prompt[:-1], [1, 2], [51, 52]], [[*answer[:-1], 3], [30, 31]])


def test_runs_are_compared_token_by_token() -> None:
    """The bytes of a run may stand between two tokens."""
    assert not store_of([256, 256]).holds([1])
    assert store_of([256, 1]).holds([1])
