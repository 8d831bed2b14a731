"""How mistakes are told: one line for what a user can mend, the whole trace for everything else."""

import re
import traceback
from argparse import ArgumentError
from collections.abc import Iterable

from saccade.cli.suggestions import with_suggestions


class UsageError(Exception):
    """A mistake that the user can mend; its text is one line that says what is wrong."""


# the parser's explanations that say nothing: what types there are, and the whole value that was given
_NOISE = re.compile(
    r"(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Given value: .*(Namespace|NestedArg)\(.*|Problem with given class_path '[^']*':|See stack trace.*"
    r"|Expected an? <class '\w+'>\.?|Not a valid subclass of .*|Subclass types expect one of:?"
    r"|a class path \(str\)|a dict with(out)? class_path .*|a dict with parameters accepted by .*)"
)
_NEW_REASON = re.compile(r"\s*- |\s*Given value|\s*Parser key")
_MAX_LENGTH = 600

WRONG_WEIGHTS = "Error(s) in loading state_dict for"
"""How torch begins to say that a checkpoint is another model's."""


def one_line(error: BaseException, options: Iterable[str] = ()) -> str:
    """Say in one line what went wrong.

    Args:
        error: What was raised.
        options: Of the command, without their dashes; a misspelt one is compared with them.

    Returns:
        The message without line breaks and without the parser's repetitions; the error's type where it has no
        message, or where the message alone says too little (a KeyError, a TypeError).
    """
    text = str(error)
    if text.startswith(WRONG_WEIGHTS):
        return _wrong_weights(text)
    if isinstance(error, ArgumentError) or "Parser key" in text or "Does not validate against" in text:
        text = with_suggestions(_without_repetitions(text), options)
    text = " ".join(text.split())
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError | IndexError | AttributeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 4] + " ..."


def _wrong_weights(text: str) -> str:
    """How many weights do not fit, with one of each kind, where torch lists them all."""
    module = text.removeprefix(WRONG_WEIGHTS).split(":", 1)[0].strip()
    told = []
    for kind, words in (("Missing", "are not in it"), ("Unexpected", "are no part of the model")):
        if listed := re.search(rf"{kind} key\(s\) in state_dict: (.*)", text):
            names = re.findall(r'"([^"]+)"', listed[1])
            told.append(f"{len(names)} {words}, such as {names[0]}")
    if other := re.findall(r"size mismatch for (\S+):", text):
        told.append(f"{len(other)} have other shapes, such as {other[0]}")
    return (
        f"ckpt_path: its weights do not fit {module}: {'; '.join(told)}. Take a checkpoint of this configuration,"
        " or give the one that it was trained with."
    )


def _without_repetitions(text: str) -> str:
    """Keep the reasons of a parser error, without the alternatives that nobody meant."""
    reasons: list[str] = []
    for line in text.splitlines():
        words = re.sub(r"^\s*- ", "", line).strip()
        if not words or _NOISE.fullmatch(words):
            continue
        if any(words in reason for reason in reasons):
            continue
        if reasons and not _NEW_REASON.match(line):
            reasons[-1] += f" {words}"
        else:
            reasons.append(words)
    joined = ""
    for reason in reasons:
        joined += ("" if not joined else " " if joined.endswith(":") else "; ") + reason
    # keys inside each other: `model` then `lora` are `model.lora`
    joined = joined.replace('": Parser', ": Parser")
    while (shorter := re.sub(r'(Parser key "[^":]*): Parser key "', r"\1.", joined)) != joined:
        joined = shorter
    return joined


def raised_by_us(error: BaseException) -> bool:
    """Whether the statement that raised the error checks settings: saccade's own, or Lightning's of its trainer.

    What a library below them raised may be anybody's mistake, and keeps its trace.

    Args:
        error: An exception that was caught.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    where = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return where.startswith(("saccade.", "lightning.pytorch.loops.", "lightning.pytorch.trainer."))
