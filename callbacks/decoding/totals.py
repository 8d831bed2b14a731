"""Exact totals of one decoder over all ranks, exchanged as one tensor of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from saccade.common.distributed import reduce_max, reduce_sum
from saccade.inference import DecodingStats
from saccade.inference.verification.near_ties import NearTie

_FIELDS = [item.name for item in fields(DecodingStats)]
_MAXIMA = [name for name in _FIELDS if name.endswith("_bytes")]
_SUMS = [name for name in _FIELDS if name not in _MAXIMA and name != "acceptance_histogram"]
_FLOATS = {name for name in _SUMS if name.endswith("seconds")}

PER_REQUEST = (
    "mean_acceptance_length",
    "mean_accepted_draft_tokens",
    "draft_acceptance_rate",
    "tokens_per_second",
    "time_to_first_token",
    "time_per_output_token",
)
"""Statistics that are also reported as the mean over requests."""

COUNTS = (
    "identical_rows",
    "differing_tokens",
    "near_tie_rows",
    "full_tokens",
    "full_tokens_equal",
    "generated_distinct",
    "generated_grams",
    "real_distinct",
    "real_grams",
    "facts_right",
    "facts_asked",
    "turns_left_out",
    "answers_known",
    "exact_matches",
    "numbers_known",
    "numbers_right",
    "token_f1_millionths",
    "rouge_l_millionths",
)
"""Further counts: agreement with the baseline, and of a compressed cache with the full one; 4-grams of the generated
and of the real text; the facts that the datamodule asks for and those that it finds in the answer; later turns for
which the context has no room; and how well answers agree with known ones. Scores are summed as whole millionths, so
that sums are exact on any number of ranks."""


class DecodingTotals:
    """Sums over requests that do not depend on how the requests were distributed over ranks.

    Integers are exchanged as float64, which is exact up to 2**53. A round cannot accept more draft tokens than a row
    may have new tokens, so a histogram of ``max_new_tokens + 1`` bins has room for every round.

    Args:
        max_new_tokens: Largest number of new tokens of a row.
        repeats: Number of passes over the prompts.
    """

    def __init__(self, max_new_tokens: int, repeats: int = 1) -> None:
        self.bins = max_new_tokens + 1
        self.stats = DecodingStats()
        self.seconds = [0.0] * repeats
        self.new_tokens = [0] * repeats
        self.requests = dict.fromkeys(PER_REQUEST, 0.0)
        self.counts = dict.fromkeys(COUNTS, 0)
        self.near_tie_limit = 0.0
        """Largest difference of logits that counted as a near tie; 0 where nothing was judged."""

    def add(self, pooled: DecodingStats, per_request: Sequence[DecodingStats], repeat: int = 0) -> None:
        """Add the statistics of one ``generate`` call.

        Args:
            pooled: Statistics of the call.
            per_request: Statistics of its rows.
            repeat: Number of the pass.
        """
        self.stats = self.stats + pooled
        self.seconds[repeat] += pooled.seconds
        self.new_tokens[repeat] += pooled.new_tokens
        for stats in per_request:
            for name in PER_REQUEST:
                self.requests[name] += getattr(stats, name)

    def count(self, **amounts: int) -> None:
        """Add to further counts, given by their names in :data:`COUNTS`."""
        for name, amount in amounts.items():
            self.counts[name] += amount

    def __add__(self, other: DecodingTotals) -> DecodingTotals:
        total = DecodingTotals(self.bins - 1, len(self.seconds))
        total.stats = self.stats + other.stats
        total.seconds = [a + b for a, b in zip(self.seconds, other.seconds, strict=True)]
        total.new_tokens = [a + b for a, b in zip(self.new_tokens, other.new_tokens, strict=True)]
        total.requests = {name: value + other.requests[name] for name, value in self.requests.items()}
        total.counts = {name: value + other.counts[name] for name, value in self.counts.items()}
        total.near_tie_limit = max(self.near_tie_limit, other.near_tie_limit)
        return total

    def count_near_tie(self, tie: NearTie) -> None:
        """Add a row of a lossless decoder that differs from the baseline's."""
        self.count(near_tie_rows=int(tie.near))
        self.near_tie_limit = max(self.near_tie_limit, tie.limit)

    def reduced(self, device: torch.device) -> DecodingTotals:
        """Return the totals over all ranks. Every rank must call this, also one that decoded nothing.

        Args:
            device: Device of this rank, for the exchange.
        """
        histogram = [0] * self.bins
        for accepted, rounds in self.stats.acceptance_histogram.items():
            histogram[accepted] += rounds
        sums = [getattr(self.stats, name) for name in _SUMS]
        parts = [
            *sums,
            *self.requests.values(),
            *self.counts.values(),
            *self.seconds,
            *self.new_tokens,
            *histogram,
        ]
        values = reduce_sum(torch.tensor(parts, dtype=torch.float64), device).tolist()
        maxima = [*(getattr(self.stats, name) for name in _MAXIMA), self.near_tie_limit]
        peaks = reduce_max(torch.tensor(maxima, dtype=torch.float64), device).tolist()

        total = DecodingTotals(self.bins - 1, len(self.seconds))
        stream = iter(values)
        for name in _SUMS:
            value = next(stream)
            setattr(total.stats, name, value if name in _FLOATS else int(value))
        total.requests = {name: next(stream) for name in PER_REQUEST}
        total.counts = {name: int(next(stream)) for name in COUNTS}
        total.seconds = [next(stream) for _ in self.seconds]
        total.new_tokens = [int(next(stream)) for _ in self.new_tokens]
        total.stats.acceptance_histogram = {bin_: int(rounds) for bin_, rounds in enumerate(stream) if rounds}
        *sizes, total.near_tie_limit = peaks
        for name, peak in zip(_MAXIMA, sizes, strict=True):
            setattr(total.stats, name, int(peak))
        return total

    def request_means(self) -> dict[str, float]:
        """Return the means over requests, which may differ from the pooled values."""
        return {name: value / max(self.stats.requests, 1) for name, value in self.requests.items()}

    def speeds(self) -> list[float]:
        """Tokens per second of each pass; 0 for one without time."""
        return [
            tokens / seconds if seconds > 0 else 0.0
            for tokens, seconds in zip(self.new_tokens, self.seconds, strict=True)
        ]

    @property
    def tokens_as_full(self) -> float | None:
        """Share of the tokens of a compressed cache that are those of the full cache at the same place."""
        return _share(self.counts["full_tokens_equal"], self.counts["full_tokens"])

    @property
    def distinct_4(self) -> float | None:
        """Distinct 4-grams of each row over all 4-grams, pooled over rows of generated text; ``None`` without any."""
        return _share(self.counts["generated_distinct"], self.counts["generated_grams"])

    @property
    def real_distinct_4(self) -> float | None:
        """The same of real text of the same length."""
        return _share(self.counts["real_distinct"], self.counts["real_grams"])

    @property
    def slot_accuracy(self) -> float | None:
        """Share of the asked facts that the answers state; ``None`` if the datamodule asks for none."""
        return _share(self.counts["facts_right"], self.counts["facts_asked"])

    def answer_quality(self) -> dict[str, float | int | None]:
        """How well answers agree with known ones: their number, and means over them; ``None`` without any."""
        known = self.counts["answers_known"]
        return {
            "answers": known,
            "exact_match": _share(self.counts["exact_matches"], known),
            "numeric_match": _share(self.counts["numbers_right"], self.counts["numbers_known"]),
            "token_f1": _share(self.counts["token_f1_millionths"], known * 1_000_000),
            "rouge_l": _share(self.counts["rouge_l_millionths"], known * 1_000_000),
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def distinct_grams(tokens: Sequence[int], n: int = 4) -> tuple[int, int]:
    """Count the n-grams of a text, to see how repetitive it is.

    Args:
        tokens: Token ids.
        n: Length of the n-grams.

    Returns:
        Number of different n-grams, and number of n-grams.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)


def repetition_counts(generated: Sequence[int], text: Sequence[int], prompt_length: int) -> dict[str, int]:
    """Count the 4-grams of a generated row and of real text of the same length.

    The real text is what follows the prompt. If the row is too short for that, the window moves to the left. If the row
    is shorter than the generated text, both are cut to its length, because short texts are less repetitive.

    Args:
        generated: New tokens of a row.
        text: The whole row of the data.
        prompt_length: Tokens of ``text`` that were the prompt.
    """
    length = min(len(generated), len(text))
    start = max(0, min(prompt_length, len(text) - length))
    distinct, grams = distinct_grams(generated[:length])
    real_distinct, real_grams = distinct_grams(text[start : start + length])
    return {
        "generated_distinct": distinct,
        "generated_grams": grams,
        "real_distinct": real_distinct,
        "real_grams": real_grams,
    }


def differing_tokens(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """Count the positions at which two rows differ; every token by which one is longer counts as different."""
    return sum(a != b for a, b in zip(tokens, reference, strict=False)) + abs(len(tokens) - len(reference))
