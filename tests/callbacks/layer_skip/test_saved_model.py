"""The prompts of a layer search: chats as `saccade compare` reads them, or pieces of text files."""

from __future__ import annotations

import codecs
import inspect
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from saccade.callbacks.layer_skip.saved_model import (
    COMPARED_PROMPTS,
    chat_prompts,
    held_out_files,
    prompts_of,
    search_layers_of,
)
from saccade.cli.commands.compare import compare
from saccade.datamodules import Prompts
from tests.support.chat_models import chat_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return chat_model(tmp_path_factory.mktemp("chat"))


def test_built_in_prompts_are_other_ones_than_compare_takes(model) -> None:
    assert inspect.signature(compare).parameters["max_prompts"].default == COMPARED_PROMPTS
    compared = Prompts(tokenizer=model, max_prompts=COMPARED_PROMPTS)
    compared.setup()
    read = {tuple(compared.encode(item)[0]) for item in range(COMPARED_PROMPTS)}
    found = [tuple(ids.tolist()) for ids in chat_prompts(model, None, 8, without=COMPARED_PROMPTS)]
    assert len(set(found)) == 8
    assert read.isdisjoint(found)
    every = Prompts(tokenizer=model)
    every.setup()
    kinds = {tuple(every.encode(item)[0]): each.category for item, each in enumerate(every.conversations)}
    assert sorted(kinds[ids] for ids in found) == sorted(every.categories), "one of each category"


def test_prompts_of_files_are_first_turns_in_the_chat_form(model, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in ({"turns": ["one", "two"]}, {"prompt": "three " * 60})))
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = chat_prompts(model, [str(file)], 8)
    assert len(ids) == 2
    text = tokenizer.decode(ids[0])
    assert "one" in text
    assert "two" not in text
    assert text != "one", "the template is there"
    with pytest.warns(UserWarning, match="leaves out 1 of 2 prompts, which are too long"):
        assert len(chat_prompts(model, [str(file)], 8, longest=len(ids[0]))) == 1
    with pytest.raises(ValueError, match="prompts must leave room for max_new_tokens"):
        chat_prompts(model, [str(file)], 8, longest=2)
    with pytest.raises(ValueError, match="prompts must be more than the 2 that are left out, got 2"):
        chat_prompts(model, [str(file)], 8, without=2)


def test_pieces_of_text_files(model, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name, content in (("a", "abcdefghij" * 3), ("b", "x"), ("c", "0123456789" * 3)):
        (tmp_path / f"{name}.txt").write_text(content)
    files = held_out_files([str(tmp_path / "*.txt")])
    prompts = prompts_of(files, tokenizer, 4, 5)
    assert [len(prompt) for prompt in prompts] == [5] * 4
    assert len(prompts_of(files, tokenizer, 1, 5)) == 1
    with pytest.raises(ValueError, match="no text file has 3100 tokens"):
        prompts_of(files, tokenizer, 4, 3100)
    embedded = held_out_files()
    assert len(embedded) > 5
    assert all(file.path.suffix == ".py" for file in embedded)


@pytest.mark.parametrize(
    ("mark", "codec"), [(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")]
)
def test_special_tokens_that_a_text_spells_stay_text_and_byte_order_marks_are_left_out(
    model, tmp_path: Path, mark: bytes, codec: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    spelt = f"a {tokenizer.eos_token} b"
    (tmp_path / "a.txt").write_bytes(mark + spelt.encode(codec))
    files = held_out_files([str(tmp_path / "a.txt")])
    length = next(length for length in range(60, 0, -1) if _fits(files, tokenizer, length))
    (ids,) = prompts_of(files, tokenizer, 1, length)
    assert tokenizer.eos_token_id not in ids.tolist()
    assert tokenizer.decode(ids) == spelt


def _fits(files: list, tokenizer: object, length: int) -> bool:
    try:
        return len(prompts_of(files, tokenizer, 1, length)) == 1
    except ValueError:
        return False


def test_what_cannot_be_asked_together_is_refused(model) -> None:
    with pytest.raises(ValueError, match=r"prompts must be left out where text is given, got both"):
        search_layers_of(model, prompts=["a.jsonl"], text=["*.txt"])
    with pytest.raises(ValueError, match=r"prompts must be files of prompts, got 8: write max_prompts=8"):
        search_layers_of(model, prompts=["8"])
