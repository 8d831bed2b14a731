"""Conversations of a file of JSON lines: what is asked turn by turn, and what is known about the answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from saccade.common.json_lines import read_json_lines

BUILT_IN = Path(__file__).with_name("built_in.jsonl")
"""The prompts that come with saccade."""

_FORMS = ("prompt", "messages", "turns")
_ID_KEYS = ("id", "question_id", "task_id")  # Spec-Bench and MT-bench, HumanEval
_ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, str]
"""A message of a chat: `role` and `content`."""


@dataclass(frozen=True)
class Conversation:
    """One line of a file of prompts.

    Attributes:
        id: The line's `id`, `question_id` or `task_id`; without one, name of the file and number of the line.
        category: The line's `category`, or the name of the file without its ending.
        turns: The messages that each turn adds before it is answered, at least one for each turn.
        answers: For each turn the texts that are right; empty if none is known.
        images: Paths of images, which come before the text of the first turn.
        video: Path of a video, which comes before that text too.
        place: File and line, for messages.
        cut: Whether the last answer stops before its end (`finish_reason` is `length`).
    """

    id: str
    category: str
    turns: tuple[tuple[Message, ...], ...]
    answers: tuple[tuple[str, ...], ...]
    images: tuple[Path, ...]
    video: Path | None
    place: str
    cut: bool = False

    @property
    def key(self) -> int:
        """A hash of 62 bits of the content, without the place in a file."""
        content = [self.category, self.turns, self.answers, [*map(str, self.images)], str(self.video)]
        digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 2

    def messages(self, answers: Sequence[str]) -> list[Message]:
        """The chat up to the question of a turn.

        Args:
            answers: The answers to the turns before it.
        """
        found = list(self.turns[0])
        for answer, turn in zip(answers, self.turns[1:], strict=False):
            found += [{"role": "assistant", "content": answer}, *turn]
        return found


def read_conversations(paths: Iterable[str | os.PathLike[str]]) -> list[Conversation]:
    """Read files of prompts: in each line one JSON object with `prompt`, `messages` or `turns`.

    Args:
        paths: The files. Paths of images and videos are relative to the file's folder.

    Returns:
        The conversations of all files, in their order.

    Raises:
        ValueError: A file cannot be read or has no prompt, or a line is invalid; the message names file and line.
    """
    found: list[Conversation] = []
    for path in paths:
        file = Path(os.path.expanduser(path))
        own = [_conversation(value, file, number) for number, value in read_json_lines(file)]
        if not own:
            raise ValueError(f"prompts file {file} must have prompts, got none: write one JSON object in each line.")
        found += own
    return found


def _conversation(value: Any, file: Path, line: int) -> Conversation:
    place = f"{file}, line {line}"
    if not isinstance(value, Mapping):
        _fail(place, f"row must be an object, got {str(value)[:40]!r}", f"write one with {', '.join(_FORMS)}")
    given = [name for name in _FORMS if value.get(name) is not None]
    if len(given) != 1:
        what = " and ".join(given) or ", ".join(map(str, value)) or "no keys"
        _fail(place, f"row must have one of {', '.join(_FORMS)}, got {what}", "keep or add one")
    form = given[0]
    own_answer: tuple[str, ...] = ()
    if form == "prompt":
        turns: tuple[tuple[Message, ...], ...] = (({"role": "user", "content": _text(value, "prompt", place)},),)
    elif form == "turns":
        texts = value["turns"]
        if not isinstance(texts, list) or not texts:
            _fail(place, f"turns must be a list of texts, got {texts!r}", "write at least one")
        turns = tuple(({"role": "user", "content": _text({"turns": text}, "turns", place)},) for text in texts)
    else:
        messages = _messages(value["messages"], place)
        if messages[-1]["role"] == "assistant" and len(messages) > 1:
            own_answer = (messages.pop()["content"],)
        if messages[-1]["role"] == "assistant":
            _fail(place, "messages must have a question, got an answer only", "add a message with the role user")
        turns = (tuple(messages),)
    answers = _answers(value, len(turns), form == "turns", place)
    if not answers[-1] and own_answer:
        answers = (*answers[:-1], own_answer)
    images = value.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        _fail(place, f"images must be a list of paths, got {images!r}", "correct it")
    video = value.get("video")
    if video is not None and (not isinstance(video, str) or not video):
        _fail(place, f"video must be a path, got {video!r}", "correct it")
    name = next((value[key] for key in _ID_KEYS if value.get(key) is not None), f"{file.stem}-{line}")
    category = value.get("category", file.stem)
    for key, text in (("id", name), ("category", category)):
        if isinstance(text, bool) or not isinstance(text, (str, int)) or not str(text).strip():
            _fail(place, f"{key} must be a text, got {text!r}", "correct it or leave it out")
    return Conversation(
        " ".join(str(name).split()),
        " ".join(str(category).split()),
        turns,
        answers,
        tuple(_existing(image, "images", file, place) for image in images),
        None if video is None else _existing(video, "video", file, place),
        place,
        value.get("finish_reason") == "length",
    )


def _messages(given: Any, place: str) -> list[Message]:
    if not isinstance(given, list) or not given:
        _fail(place, f"messages must be a list of objects, got {str(given)[:40]!r}", "write role and content for each")
    found: list[Message] = []
    for message in given:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            what = str(message.get("role") if isinstance(message, Mapping) else message)[:40]
            _fail(place, f"messages must have a role of {', '.join(_ROLES)}, got {what!r}", "correct it")
        found.append({"role": message["role"], "content": _text(message, "content", place)})
    return found


def _answers(value: Mapping[str, Any], turns: int, by_turn: bool, place: str) -> tuple[tuple[str, ...], ...]:
    """The texts that are right, for each turn; `reference` is what Spec-Bench calls the answers to its turns."""
    none: tuple[tuple[str, ...], ...] = ((),) * turns
    if value.get("answer") is not None:
        if value.get("answers") is not None:
            _fail(place, "row must have answer or answers, got both", "keep one")
        return (*none[1:], _alternatives(value["answer"], "answer", place))
    given = value.get("answers")
    if given is None and by_turn and isinstance(value.get("reference"), list):
        listed = [answer or None for answer in value["reference"]][:turns]
        given = [*listed, *[None] * (turns - len(listed))]
    if given is None:
        return none
    if not by_turn:
        return (_alternatives(given, "answers", place),)
    if not isinstance(given, list) or len(given) != turns:
        count = len(given) if isinstance(given, list) else repr(given)
        _fail(
            place,
            f"answers must have one entry for each of the {turns} turns, got {count}",
            "write a text, a list of texts or null for each",
        )
    return tuple(() if answer is None else _alternatives(answer, "answers", place) for answer in given)


def _alternatives(given: Any, name: str, place: str) -> tuple[str, ...]:
    texts = given if isinstance(given, list) else [given]
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, (str, int, float)) or not str(text).strip():
            _fail(place, f"{name} must be a text that is not empty, got {text!r}", "correct it or leave it out")
    return tuple(str(text) for text in texts)


def _text(value: Mapping[str, Any], name: str, place: str) -> str:
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        _fail(place, f"{name} must be a text that is not empty, got {text!r}", "correct it")
    return text


def _existing(path: str, name: str, file: Path, place: str) -> Path:
    found = file.parent / os.path.expanduser(path)
    if not os.path.exists(found):
        _fail(place, f"{name} must exist, got {found}", "give a path relative to the folder of the file")
    return found


def _fail(place: str, what: str, advice: str) -> NoReturn:
    raise ValueError(f"{place}: {what}: {advice}.")


def chosen(conversations: Sequence[Conversation], count: int | None) -> list[Conversation]:
    """Choose conversations so that every category has as many as every other, as far as there are enough.

    Args:
        conversations: The candidates.
        count: Most conversations to choose; None for all.

    Returns:
        The first ones of each category, in the order of the candidates.
    """
    if count is None or count >= len(conversations):
        return list(conversations)
    ranks: dict[str, int] = {}
    order = []
    for place, conversation in enumerate(conversations):
        rank = ranks[conversation.category] = ranks.get(conversation.category, -1) + 1
        order.append((rank, place))
    return [conversations[place] for place in sorted(place for _, place in sorted(order)[:count])]
