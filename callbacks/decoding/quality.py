"""How well an answer agrees with texts that are right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchmetrics.functional.text import squad
from torchmetrics.functional.text.rouge import rouge_score

_NUMBER = re.compile(r"(?<!\w)[-+]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_MILLION = 1_000_000


def agreement(text: str, answers: Sequence[str]) -> dict[str, int]:
    """Compare an answer with texts that are right; the best of them counts for each measure.

    Exact match and the F1 of words ignore capitals, punctuation and English articles, as SQuAD's do; ROUGE-L compares
    runs of letters and digits of any language. Where a right text is a number, or ends with one after ``####`` as in
    GSM8K, the last number of the answer is compared with it.

    Args:
        text: The answer.
        answers: At least one text that is right.

    Returns:
        Amounts for :meth:`DecodingTotals.count`.
    """
    reference = {"answers": {"answer_start": [0] * len(answers), "text": list(answers)}, "id": "0"}
    found = squad({"prediction_text": text, "id": "0"}, reference)  # type: ignore[arg-type]
    rouge = rouge_score(text, [list(answers)], accumulate="best", rouge_keys="rougeL", normalizer=_plain)
    counts = {
        "answers_known": 1,
        "exact_matches": int(found["exact_match"] > 0),
        "token_f1_millionths": round(float(found["f1"]) / 100 * _MILLION),
        "rouge_l_millionths": round(float(rouge["rougeL_fmeasure"]) * _MILLION),
    }
    numbers = [number for answer in answers if (number := number_of(answer)) is not None]
    if numbers:
        last = last_number(text)
        right = last is not None and any(abs(last - number) <= 1e-6 * max(1.0, abs(number)) for number in numbers)
        counts |= {"numbers_known": 1, "numbers_right": int(right)}
    return counts


def number_of(answer: str) -> float | None:
    """Return the number that a right text is, with or without a currency or percent sign; ``None`` if it is none."""
    final = answer.rpartition("####")[2].strip().strip("$€£%").strip()
    return float(final.replace(",", "")) if _NUMBER.fullmatch(final) else None


def last_number(text: str) -> float | None:
    """Return the last number in a text; ``None`` if there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _plain(text: str) -> str:
    """Letters and digits of any language in lower case, with blanks between words."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
