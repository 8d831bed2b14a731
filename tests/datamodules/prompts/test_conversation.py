"""Lines of prompt files become conversations, or end with one line that names file and line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from saccade.datamodules.prompts.conversation import BUILT_IN, chosen, read_conversations
from tests.support.chat_models import write_prompts
from tests.support.errors import one_line
from tests.support.shared_data import shared_file


def read(folder: Path, *rows: object) -> list:
    return read_conversations([write_prompts(folder / "some.jsonl", rows)])


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_the_three_forms(tmp_path):
    history = [{"role": "system", "content": "Be brief."}, user("Hi"), {"role": "assistant", "content": "Hello"}]
    one, chat, answered, turns = read(
        tmp_path,
        {"prompt": "Hi", "answer": 4, "id": 7, "category": "sums", "else": 1},
        {"messages": [*history, user("Bye")], "answers": ["a", "b"]},
        {"messages": history},
        {"turns": ["one", "two"], "answers": [None, ["x", "y"]], "task_id": "T/1"},
    )
    assert (one.id, one.category, one.turns, one.answers) == ("7", "sums", ((user("Hi"),),), (("4",),))
    assert (chat.id, chat.category, chat.answers) == ("some-2", "some", (("a", "b"),))
    assert chat.messages([]) == [*history, user("Bye")]
    # a chat that ends with an assistant's message has its answer there
    assert (answered.messages([]), answered.answers) == (history[:2], (("Hello",),))
    assert (turns.id, turns.answers) == ("T/1", ((), ("x", "y")))
    assert turns.messages(["1."]) == [user("one"), {"role": "assistant", "content": "1."}, user("two")]


def test_the_answer_of_turns_is_that_of_the_last_one(tmp_path):
    last, spec_bench, short = read(
        tmp_path,
        {"turns": ["a", "b"], "answer": ["1", "2"]},
        {"turns": ["a", "b"], "reference": ["1", ""], "question_id": 81, "category": "math"},
        {"turns": ["a", "b"], "reference": ["1"]},
    )
    assert last.answers == ((), ("1", "2"))
    assert (spec_bench.id, spec_bench.answers) == ("81", (("1",), ()))
    assert short.answers == (("1",), ())


def test_media_are_looked_for_beside_the_file(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (found,) = read(tmp_path, {"prompt": "What?", "images": ["a.png"], "video": "a.png"})
    assert (found.images, found.video) == ((tmp_path / "a.png",), tmp_path / "a.png")


@pytest.mark.parametrize(
    ("row", "needles"),
    [
        ('{"prompt": "half', ["line 2", "row must be JSON"]),
        ("[1]", ["row must be an object, got '[1]'"]),
        ({"question": "x"}, ["must have one of prompt, messages, turns, got question"]),
        ({"prompt": "x", "turns": ["y"]}, ["got prompt and turns: keep or add one"]),
        ({"prompt": " "}, ["prompt must be a text that is not empty, got ' '"]),
        ({"prompt": 3}, ["prompt must be a text that is not empty, got 3"]),
        ({"turns": []}, ["turns must be a list of texts, got []"]),
        ({"turns": "x"}, ["turns must be a list of texts, got 'x'"]),
        ({"turns": ["x", None]}, ["turns must be a text that is not empty, got None"]),
        ({"messages": [{"role": "boss", "content": "x"}]}, ["messages must have a role of", "got 'boss'"]),
        ({"messages": [user("")]}, ["content must be a text that is not empty, got ''"]),
        ({"messages": [{"role": "assistant", "content": "x"}]}, ["messages must have a question"]),
        ({"prompt": "x", "answer": ""}, ["answer must be a text that is not empty, got ''"]),
        ({"prompt": "x", "answer": "1", "answers": ["1"]}, ["answer or answers, got both"]),
        ({"turns": ["x"], "answers": ["1", "2"]}, ["answers must have one entry for each of the 1 turns, got 2"]),
        ({"prompt": "x", "images": "a.png"}, ["images must be a list of paths, got 'a.png'"]),
        ({"prompt": "x", "images": ["no.png"]}, ["images must exist", "no.png"]),
        ({"prompt": "x", "video": 1}, ["video must be a path, got 1"]),
        ({"prompt": "x", "video": "no.mp4"}, ["video must exist", "no.mp4"]),
        ({"prompt": "x", "category": ""}, ["category must be a text, got ''"]),
        ({"prompt": "x", "id": [1]}, ["id must be a text, got [1]"]),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, needles):
    one_line(lambda: read(tmp_path, {"prompt": "good"}, row), "some.jsonl, line 2", *needles)


def test_a_file_without_prompts_is_named(tmp_path):
    full, empty = write_prompts(tmp_path / "full.jsonl", [{"prompt": "x"}]), tmp_path / "empty.jsonl"
    for content in ("", "\n \n"):
        empty.write_text(content)
        one_line(lambda: read_conversations([full, empty]), "empty.jsonl must have prompts, got none")
    one_line(lambda: read_conversations([tmp_path / "none.jsonl"]), "cannot read", "none.jsonl")


def test_every_category_has_as_many_as_there_are(tmp_path):
    rows = [{"prompt": str(place), "category": name} for place, name in enumerate("aaabbc")]
    found = read(tmp_path, *rows)
    assert [c.category for c in chosen(found, 5)] == ["a", "a", "b", "b", "c"]
    assert [c.turns[0][0]["content"] for c in chosen(found, 3)] == ["0", "3", "5"]
    assert len(chosen(found, None)) == len(chosen(found, 99)) == 6


def test_the_built_in_prompts():
    found = read_conversations([BUILT_IN])
    assert set(Counter(c.category for c in found).values()) == {8}
    assert len({c.category for c in found}) == 8
    assert len({c.key for c in found}) == len({c.id for c in found}) == 64
    answered = {c.category for c in found if any(c.answers)}
    assert answered == {"summary", "code editing", "extraction", "translation", "arithmetic", "retrieval"}
    assert sum(len(c.turns) > 1 for c in found) == 2
    # the first eight are of eight categories
    assert len({c.category for c in found[:8]}) == 8


def test_spec_bench_is_read_whole():
    found = read_conversations([shared_file("text/prompts/spec_bench_question.jsonl")])
    assert len(found) == 480
    assert sum(len(c.turns) == 2 for c in found) == 80
    assert found[-1].category == "rag"
