"""Exact totals of one decoder over all ranks, as one tensor of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from saccade.common.distributed import reduce_max, reduce_sum
from saccade.inference import DecodingStats

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
"""Figures that are also reported as the mean over requests."""

COUNTS = (
    "identical_rows",
    "differing_tokens",
    "near_tie_rows",
    "generated_distinct",
    "generated_grams",
    "real_distinct",
    "real_grams",
    "facts_right",
    "facts_asked",
)
"""Further counts: agreement with the baseline, 4-grams of the generated and of the real text, and facts that the
datamodule knows of a row and finds in its answer."""


class DecodingTotals:
    """Sums over requests, none of which depends on how the requests were spread over ranks.

    Integers travel in float64 and stay exact up to 2**53. A round cannot accept more drafts than a row may have new
    tokens, so a histogram of ``max_new_tokens + 1`` bins loses nothing.

    Args:
        max_new_tokens: Most new tokens of a row.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self.bins = max_new_tokens + 1
        self.stats = DecodingStats()
        self.requests = dict.fromkeys(PER_REQUEST, 0.0)
        self.counts = dict.fromkeys(COUNTS, 0)

    def add(self, pooled: DecodingStats, per_request: Sequence[DecodingStats]) -> None:
        """Adds one ``generate`` call.

        Args:
            pooled: Statistics of the call.
            per_request: Statistics of its rows.
        """
        self.stats = self.stats + pooled
        for stats in per_request:
            for name in PER_REQUEST:
                self.requests[name] += getattr(stats, name)

    def count(self, **amounts: int) -> None:
        """Adds to the further counts, by their names in :data:`COUNTS`."""
        for name, amount in amounts.items():
            self.counts[name] += amount

    def reduced(self, device: torch.device) -> DecodingTotals:
        """The totals over all ranks. Every rank must call it, also one that decoded nothing.

        Args:
            device: Device of this rank, for the exchange.
        """
        histogram = [0] * self.bins
        for accepted, rounds in self.stats.acceptance_histogram.items():
            histogram[accepted] += rounds
        sums = [getattr(self.stats, name) for name in _SUMS]
        parts = [*sums, *self.requests.values(), *self.counts.values(), *histogram]
        values = reduce_sum(torch.tensor(parts, dtype=torch.float64), device).tolist()
        maxima = [getattr(self.stats, name) for name in _MAXIMA]
        peaks = reduce_max(torch.tensor(maxima, dtype=torch.float64), device).tolist()

        total = DecodingTotals(self.bins - 1)
        stream = iter(values)
        for name in _SUMS:
            value = next(stream)
            setattr(total.stats, name, value if name in _FLOATS else int(value))
        total.requests = {name: next(stream) for name in PER_REQUEST}
        total.counts = {name: int(next(stream)) for name in COUNTS}
        total.stats.acceptance_histogram = {bin_: int(rounds) for bin_, rounds in enumerate(stream) if rounds}
        for name, peak in zip(_MAXIMA, peaks, strict=True):
            setattr(total.stats, name, int(peak))
        return total

    def request_means(self) -> dict[str, float]:
        """The means over requests, for comparison with the pooled values."""
        return {name: value / max(self.stats.requests, 1) for name, value in self.requests.items()}

    @property
    def distinct_4(self) -> float | None:
        """Share of the generated 4-grams that are different from each other within their row; ``None`` without any."""
        return _share(self.counts["generated_distinct"], self.counts["generated_grams"])

    @property
    def real_distinct_4(self) -> float | None:
        """The same of real text of the same length."""
        return _share(self.counts["real_distinct"], self.counts["real_grams"])

    @property
    def slot_accuracy(self) -> float | None:
        """Share of the known facts that the answers tell; ``None`` where nobody knows them."""
        return _share(self.counts["facts_right"], self.counts["facts_asked"])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def distinct_grams(tokens: Sequence[int], n: int = 4) -> tuple[int, int]:
    """How repetitive a text is.

    Args:
        tokens: Token ids.
        n: Length of the n-grams.

    Returns:
        Number of different n-grams, and number of n-grams.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)


def repetition_counts(generated: Sequence[int], text: Sequence[int], prompt_length: int) -> dict[str, int]:
    """4-gram counts of a generated row and of real text of the same length.

    The real text is what follows the prompt. Where the row is too short for that, the window moves to the left; where
    it is shorter than the generated text, both are cut to its length, because short texts repeat less.

    Args:
        generated: New tokens of a row.
        text: The whole real row.
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
    """Positions at which two rows differ; the part by which one is longer counts whole."""
    return sum(a != b for a, b in zip(tokens, reference, strict=False)) + abs(len(tokens) - len(reference))
