"""Long prompts of real text with known answers: needles, values, functions far from their calls, worked problems.

The text is what every machine with Python has: the pages of ``help()`` as prose, and the sources of the standard
library as code. What is asked for is planted in it and made by chance, so no model knows it from its training. Every
answer follows the prompt at once, so that one forward over the known answer tells whether greedy decoding writes it.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

CITIES = (
    "Lisbon", "Cairo", "Lima", "Oslo", "Dakar", "Hanoi", "Quito", "Riga", "Seoul", "Tunis", "Vienna", "Zagreb",
    "Accra", "Bogota", "Dublin", "Geneva", "Havana", "Kyoto", "Madrid", "Nairobi", "Prague", "Rome", "Sofia", "Warsaw",
)  # fmt: skip
COLOURS = ("amber", "black", "blue", "brown", "coral", "golden", "green", "grey", "orange", "pink", "purple", "red")
ANIMALS = (
    "bear",
    "cat",
    "crow",
    "deer",
    "duck",
    "eagle",
    "fox",
    "frog",
    "goat",
    "hawk",
    "horse",
    "lion",
    "mouse",
    "wolf",
)
VERBS = ("align", "bind", "count", "drain", "fold", "group", "lift", "mark", "pack", "rank", "split", "trim", "weigh")
NOUNS = ("anchor", "basket", "bridge", "button", "engine", "garden", "ladder", "mirror", "pocket", "ribbon", "window")
ROLES = (
    "limit",
    "depth",
    "scale",
    "offset",
    "margin",
    "weight",
    "budget",
    "origin",
    "target",
    "source",
    "mode",
    "seed",
)

_SOLUTION = 24  # tokens of a worked solution that are asked for


@dataclass(frozen=True)
class LongPrompt:
    """One prompt with its answer.

    Args:
        task: Name of the task.
        number: Of the prompt within its task.
        prompt: Token ids, the question last.
        answer: Token ids that should follow.
        planted: Positions of the prompt's tokens that tell the answer.
        question: Tokens of the question at the prompt's end.
    """

    task: str
    number: int
    prompt: list[int]
    answer: list[int]
    planted: list[int]
    question: int


@dataclass
class Sources:
    """Real texts that prompts are made of.

    Args:
        prose: Documents.
        code: Files of source code.
        documented: First lines of docstrings.
        problems: Problems and their worked solutions; without them there is no task of that name.
    """

    prose: list[str]
    code: list[str]
    documented: list[str]
    problems: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def at_hand(cls, texts: Sequence[str] = (), problems: str | None = None) -> Sources:
        """The texts of this Python.

        Args:
            texts: Files to use as prose instead.
            problems: JSON lines with ``question`` and ``answer``.
        """
        prose = [Path(path).read_text(encoding="utf-8") for path in texts] or [
            text for _, text in sorted(topics.items())
        ]
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        code = [text for path in files if 8_000 < len(text := path.read_text(encoding="utf-8")) < 120_000]
        worked = []
        if problems is not None:
            lines = Path(problems).read_text(encoding="utf-8").splitlines()
            for item in map(json.loads, lines):
                worked.append((item["question"], " ".join(_without_sums(item["answer"]).split("\n"))))
        return cls(prose, code, sorted({line for text in code for line in _documented(text)}), worked)


def _without_sums(text: str) -> str:
    """A solution without the sums in double brackets that some sets write for a calculator."""
    parts = text.split("<<")
    return parts[0] + "".join(part.split(">>", 1)[-1] for part in parts[1:])


def _documented(text: str) -> Iterator[str]:
    """First lines of docstrings of a file's functions that are one plain sentence."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            if 30 < len(first) < 80 and '"' not in first and "\\" not in first and first.endswith("."):
                yield first


@dataclass(frozen=True)
class _Draft:
    """A prompt as text: what is planted at which share of the text, what of it tells the answer, question, answer."""

    text: str
    planted: list[tuple[float, str]]
    wanted: list[str]
    question: str
    answer: str


class Maker:
    """Makes prompts of one length for one tokenizer.

    Args:
        sources: The texts.
        tokenizer: A fast tokenizer of transformers.
        length: Most tokens of a prompt; it has nearly as many.
        seed: Prompts are a function of it, of the task and of their number.
    """

    def __init__(self, sources: Sources, tokenizer: Any, length: int, seed: int = 0) -> None:
        self.sources, self.tokenizer, self.length, self.seed = sources, tokenizer, length, seed

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that the sources are enough for."""
        return [task for task in TASKS if task != "problem" or self.sources.problems]

    def make(self, task: str, number: int) -> LongPrompt:
        """The prompt of a task with a number."""
        draft = TASKS[task](self, random.Random(f"{self.seed} {task} {number}"))
        fixed = len(self._ids("".join(text for _, text in draft.planted) + draft.question))
        tokens = self.tokenizer(draft.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        room = max(1, self.length - fixed - 8)  # joints may cost a token each
        text = draft.text[: tokens[min(room, len(tokens)) - 1][1]]
        text = _planted(text, draft.planted) + draft.question
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        prompt, places = list(encoded["input_ids"]), encoded["offset_mapping"]
        whole = self._ids(text + draft.answer)
        answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._ids(draft.answer)
        spans = [(begin := text.index(wanted), begin + len(wanted)) for wanted in draft.wanted]
        planted = [
            at for at, (first, last) in enumerate(places) if any(first < end and last > begin for begin, end in spans)
        ]
        asked = len(text) - len(draft.question)
        question = sum(first >= asked for first, _ in places)
        return LongPrompt(task, number, prompt, answer[:_SOLUTION], planted, question)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def filled(self, documents: Sequence[str], chance: random.Random) -> str:
        """Documents in another order, from a line of the first one on, until the text is long enough for sure."""
        order = chance.sample(range(len(documents)), len(documents))
        first = documents[order[0]]
        begin = first.find("\n", chance.randrange(max(1, len(first) // 2))) + 1
        parts, size = [first[begin:]], len(first) - begin
        for place in order[1:]:
            if size > 8 * self.length:
                break
            parts.append(documents[place])
            size += len(documents[place])
        return "\n\n".join(parts)


def _planted(text: str, planted: Sequence[tuple[float, str]]) -> str:
    """A text with lines put in at ends of lines near shares of it."""
    parts, last = [], 0
    for share, line in sorted(planted):
        place = max(last, text.find("\n", int(share * len(text))) + 1 or len(text))
        parts += [text[last:place], line]
        last = place
    return "".join([*parts, text[last:], "\n"])


def _number(chance: random.Random) -> str:
    return str(chance.randrange(10_000, 100_000))


def needle(maker: Maker, chance: random.Random) -> _Draft:
    """One sentence with a number."""
    return _needles(maker, chance, 1)


def needles(maker: Maker, chance: random.Random) -> _Draft:
    """Three sentences with numbers, all asked for."""
    return _needles(maker, chance, 3)


def _needles(maker: Maker, chance: random.Random, count: int) -> _Draft:
    codes = {city: _number(chance) for city in chance.sample(CITIES, count)}
    lines = {city: f"The access code of {city} is {code}.\n" for city, code in codes.items()}
    planted = [(chance.uniform(0.02, 0.95), line) for line in lines.values()]
    if count == 1:
        ((city, code),) = codes.items()
        question = f"\nQuestion: What is the access code of {city}?\nAnswer: The access code of {city} is"
        answer = f" {code}"
    else:
        named = list(codes)
        question = f"\nQuestion: What are the access codes of {', '.join(named)}?\nAnswer:\n- {named[0]}:"
        answer = "\n".join(f"{'' if city == named[0] else f'- {city}:'} {code}" for city, code in codes.items())
    return _Draft(maker.filled(maker.sources.prose, chance), planted, list(lines.values()), question, answer)


def value(maker: Maker, chance: random.Random) -> _Draft:
    """Many keys with values in code, one asked for."""
    count = max(6, min(100, maker.length // 400))
    names = chance.sample([f"{colour}_{animal}" for colour in COLOURS for animal in ANIMALS], count)
    lines = {name: f"{name} = {_number(chance)}\n" for name in names}
    planted = [(chance.uniform(0.02, 0.95), line) for line in lines.values()]
    name = chance.choice(names)
    question = f"\n# Which value was assigned to {name} above?\nassert {name} =="
    answer = lines[name].split("=")[1].rstrip("\n")
    return _Draft(maker.filled(maker.sources.code, chance), planted, [lines[name]], question, answer)


def _function(maker: Maker, chance: random.Random) -> tuple[str, str, str, str]:
    name = f"{chance.choice(VERBS)}_{chance.choice(COLOURS)}_{chance.choice(NOUNS)}"
    roles = ", ".join(chance.sample(ROLES, 4))
    line = chance.choice(maker.sources.documented)
    source = f'\ndef {name}({roles}):\n    """{line}"""\n    return _{name}(({roles}))\n\n'
    return name, roles, line, source


def function_name(maker: Maker, chance: random.Random) -> _Draft:
    """A function in code, whose name is asked for by its docstring."""
    name, _, line, source = _function(maker, chance)
    question = f'\n# Call the function defined above whose docstring is "{line}"\nresult ='
    planted = [(chance.uniform(0.02, 0.95), source)]
    text = maker.filled(maker.sources.code, chance).replace(line, "")
    return _Draft(text, planted, [source.strip()], question, f" {name}(")


def function_call(maker: Maker, chance: random.Random) -> _Draft:
    """A function in code, whose parameters are asked for by its name."""
    name, roles, _, source = _function(maker, chance)
    question = f"\n# Call {name} with all of its parameters, as in the definition above.\nresult = {name}("
    planted = [(chance.uniform(0.02, 0.95), source)]
    return _Draft(maker.filled(maker.sources.code, chance), planted, [source.strip()], question, f"{roles})")


def problem(maker: Maker, chance: random.Random) -> _Draft:
    """Worked problems, of which one is posed again; its solution is asked for."""
    chosen = chance.sample(maker.sources.problems, min(len(maker.sources.problems), max(4, maker.length // 60)))
    asked, solution = chosen.pop()
    worked = [f"Problem: {question}\nSolution: {answer}\n" for question, answer in chosen]
    wanted = f"Problem: {asked}\nSolution: {solution}\n"
    question = f"\nThe same problem again.\nProblem: {asked}\nSolution:"
    text = "\n".join(worked)
    return _Draft(text, [(chance.uniform(0.02, 0.95), wanted)], [wanted], question, f" {solution}")


TASKS: dict[str, Callable[[Maker, random.Random], _Draft]] = {
    "needle": needle,
    "needles": needles,
    "value": value,
    "function_name": function_name,
    "function_call": function_call,
    "problem": problem,
}
"""The tasks by name."""
