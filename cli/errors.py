"""Error messages of the command: one line for errors in settings, a traceback for all others."""

import re
import traceback
from argparse import ArgumentError
from collections.abc import Iterable

from saccade.cli.parser_messages import explained
from saccade.cli.suggestions import with_suggestions


class UsageError(Exception):
    """An error as one line that says what is wrong and what to do.

    Args:
        message: The line.
        status: Exit status of the command: 2 for an error that the user can fix, 1 for an unexpected one.
    """

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


# parts of the parser's messages that do not help: lists of types, and the whole value that was given
_NOISE = re.compile(
    r"(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Given value: .*(Namespace|NestedArg)\(.*|Problem with given class_path '[^']*':|See stack trace.*"
    r"|Expected an? <class '[\w.]+'>\.?|Not a valid subclass of .*|Subclass types expect one of:?"
    r"|a class path \(str\)|a dict with(out)? class_path .*|a dict with parameters accepted by .*)"
)
_NEW_REASON = re.compile(r"\s*- |\s*Given value|\s*Parser key")
_MAX_LENGTH = 600

WRONG_WEIGHTS = "Error(s) in loading state_dict for"
"""Start of torch's message for a checkpoint of another model."""


def one_line(error: BaseException, options: Iterable[str] = ()) -> str:
    """Describe an error in one line.

    Args:
        error: The exception.
        options: Options of the command without dashes; the nearest one is suggested for an unknown option.

    Returns:
        The message without line breaks and without the parser's repetitions. If there is no message, it is the type of
        the error; for a KeyError, an IndexError or an AttributeError, the type precedes the message.
    """
    text = str(error)
    if (in_loader := _of_loader_process(text)) is not None:
        return in_loader
    if text.startswith(WRONG_WEIGHTS):
        return _wrong_weights(text)
    text = explained(text)
    if isinstance(error, ArgumentError) or "Parser key" in text or "Does not validate against" in text:
        text = with_suggestions(_without_repetitions(text), options)
    text = " ".join(text.split())
    if not text:
        return type(error).__name__
    if isinstance(error, KeyError | IndexError | AttributeError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 4] + " ..."


def _of_loader_process(text: str) -> str | None:
    """Return the message of an error in a loader process, which torch hides behind a traceback; None for others."""
    if re.match(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\)", text):
        cause = text.partition(": ")[2].split(".")[0] or "it exited unexpectedly"
        return f"a loader process ended ({cause}): lower num_workers or batch_size, often the memory is full."
    caught = re.match(r"Caught (\S+) in DataLoader worker process \d+\.\nOriginal Traceback", text)
    if caught is None:
        return None
    kind = caught[1].rsplit(".", 1)[-1]
    last = re.split(rf"\n(?:[\w.]*\.)?{re.escape(kind)}: ", text)[-1].strip()
    message = " ".join(last.split())
    return message if kind in ("ValueError", "OSError") else f"a loader process failed ({kind}: {message[-400:]})"


def _wrong_weights(text: str) -> str:
    """Count the weights that do not fit, with one example of each kind; torch lists them all."""
    module = text.removeprefix(WRONG_WEIGHTS).split(":", 1)[0].strip()
    counts = []
    for kind, words in (("Missing", "are missing"), ("Unexpected", "are unknown to the model")):
        if listed := re.search(rf"{kind} key\(s\) in state_dict: (.*)", text):
            names = re.findall(r'"([^"]+)"', listed[1])
            counts.append(f"{len(names)} {words}, such as {names[0]}")
    if other := re.findall(r"size mismatch for (\S+):", text):
        counts.append(f"{len(other)} have other shapes, such as {other[0]}")
    return (
        f"--ckpt_path must have the weights of {module}, got others ({'; '.join(counts)}): give a checkpoint of this"
        " configuration, or the configuration of the checkpoint."
    )


def _without_repetitions(text: str) -> str:
    """Keep the reasons of a parser error, without the alternatives that were not meant."""
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
    # nested keys: `model` then `lora` are `model.lora`
    joined = joined.replace('": Parser', ": Parser")
    while (shorter := re.sub(r'(Parser key "[^":]*): Parser key "', r"\1.", joined)) != joined:
        joined = shorter
    return joined


def raised_by_us(error: BaseException) -> bool:
    """Return whether an error was raised by saccade, or by the checks of Lightning's trainer.

    Errors of other libraries may have any cause, so the command prints their traceback. An error in a loader process
    carries its own.

    Args:
        error: A caught exception.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    where = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    lightning = tuple(f"lightning.pytorch.{part}." for part in ("callbacks", "loops", "trainer"))
    return where.startswith(("saccade.", *lightning)) or _of_loader_process(str(error)) is not None
