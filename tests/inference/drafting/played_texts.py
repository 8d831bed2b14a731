"""Plays draft control on texts whose tokens are known, at given costs of a round: seconds without a clock.

``python -m tests.inference.drafting.played_texts [FILE ...]`` prints a table; a line of a file is a JSON object with
``kind``, ``prompt`` and ``answer`` (token ids).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.inference.drafting.control import DraftControl
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalRules, RetrievalStore

Cost = Callable[[int], float]

H200 = {
    "a line": lambda count: 1.31 + 0.095 * count,
    "a jump": lambda count: 1.31 + (0.55 + 0.026 * count if count else 0.0),
}
"""Milliseconds of a round of a 1.5B model on an H200: 1.31 without a draft, 2.07 with eight tokens; what lies between
was not measured, and the time of a layer's kernels says a jump."""


@dataclass(frozen=True)
class Text:
    """A prompt and its answer, as token ids, and what kind of text it is."""

    kind: str
    prompt: list[int]
    answer: list[int]


def written(kind: str, copies: float, length: int, seed: int) -> Text:
    """A text of words as frequent as those of a language, which copies spans of its prompt.

    Args:
        kind: Its name.
        copies: Chance that a copy of about eight tokens of the prompt begins at a place of the answer.
        length: Tokens of the answer.
        seed: Of the random numbers.
    """
    draw = random.Random(seed)

    def word() -> int:
        return draw.randrange(50_000) if draw.random() < 0.5 else int(draw.paretovariate(0.4)) % 50_000

    prompt = [word() for _ in range(300)]
    answer: list[int] = []
    while len(answer) < length:
        if draw.random() < copies:
            begin = draw.randrange(len(prompt) - 40)
            answer += prompt[begin : begin + 2 + int(draw.expovariate(1 / 8))]
        else:
            answer.append(word())
    return Text(kind, prompt, answer[:length])


def play(text: Text, control: DraftControl | int, cost: Cost, longest: int = 8, ngram: int = 3) -> float:
    """The time of a text with prompt lookup.

    Args:
        text: The text.
        control: Chooses the number of drafted tokens; or their fixed number.
        cost: Of a round by its drafted tokens.
        longest: Most drafted tokens.
        ngram: Longest n-gram that is looked up.
    """
    index, elapsed, at = RetrievalStore(RetrievalRules("ngram", ngram)), 0.0, 1
    index.extend([*text.prompt, text.answer[0]])
    if isinstance(control, DraftControl):
        control.begin()
    while at < len(text.answer):
        grade, left = index.match(), len(text.answer) - at - 1
        allowed = min(left, control if isinstance(control, int) else control.length(grade))
        draft = index.find(allowed)
        taken = 0
        while taken < len(draft) and draft[taken] == text.answer[at + taken]:
            taken += 1
        seconds = cost(len(draft))
        if isinstance(control, DraftControl):
            control.observe([len(draft)], [taken], allowed, seconds, grade)
        index.extend(text.answer[at : at + taken + 1])
        at += taken + 1
        elapsed += seconds
    return elapsed


def ratios(texts: Sequence[Text], cost: Cost, control: DraftControl | None = None) -> dict[str, tuple[float, float]]:
    """How many times as fast as plain decoding each kind is: with control, and with the best fixed length.

    Args:
        texts: In the order in which they are decoded, by one decoder.
        cost: Of a round by its drafted tokens.
        control: The control; a new one by default.
    """
    control = control or DraftControl(8)
    found: dict[str, list[float]] = {}
    lengths = (1, 2, 4, 8)
    for text in texts:
        times = [play(text, each, cost) for each in (0, control, *lengths)]
        found[text.kind] = [a + b for a, b in zip(found.get(text.kind, [0.0] * len(times)), times, strict=True)]
    return {kind: (times[0] / times[1], times[0] / min(times[2:])) for kind, times in found.items()}


def main() -> None:
    """Prints the ratios for texts of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    lines = [line for file in parser.parse_args().files for line in file.read_text().splitlines()]
    texts = [Text(**{key: json.loads(line)[key] for key in ("kind", "prompt", "answer")}) for line in lines]
    kinds = list(dict.fromkeys(text.kind for text in texts))
    texts = [text for kind in kinds for text in texts if text.kind == kind]
    first = list({text.kind: text for text in texts}.values())
    for name, cost in H200.items():
        control = DraftControl(8)
        ratios(first, cost, control)
        for run in range(2):
            for kind, (chosen, best) in ratios(texts, cost, control).items():
                print(f"{name}, run {run}: {kind} {chosen:.3f}, best fixed length {best:.3f}")


if __name__ == "__main__":
    main()
