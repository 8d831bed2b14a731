"""Sampling with temperature, top-k and top-p, and reproducible random numbers for each row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from saccade.common.checks import check_choice, check_count, check_number
from saccade.common.counters import key_of
from saccade.common.transfer import to_device
from saccade.inference.noise import gumbel_noise

Coupling = Literal["gumbel", "rejection"]
"""How the draws of draft and target belong together (:class:`Sampling`)."""

NO_DISTRIBUTION = "the model's logits hold NaN or no finite value: check its weights and its precision."

NO_DRAFT_DISTRIBUTION = (
    "the draft's logits hold NaN or no finite value: check the draft model's weights and its precision, or use another "
    "decoder."
)


@dataclass
class Sampling:
    """How tokens are sampled. Pass ``sampling=None`` for greedy decoding.

    The warpers are applied in the order of ``model.generate``: temperature, top-k, top-p.

    Args:
        temperature: Divides the logits; above 0.
        top_k: Keeps the ``top_k`` largest logits, and those equal to the smallest of them; 0 keeps all.
        top_p: Keeps the smallest set of tokens whose total probability reaches ``top_p``; 1 keeps all.
        seed: Seed of the random numbers; ``None`` draws one from torch's global generator for every call, so that
            ``torch.manual_seed`` makes results reproducible.
        coupling: ``gumbel``: a token is the largest log-probability plus Gumbel noise, which seed, row and position
            determine; draft and target use the same noise, and a drafted token is accepted where it is the target's
            own choice. So every lossless decoder writes the same text, whatever its drafts, the batch and the device
            are, up to rounding. ``rejection``: a drafted token is accepted with probability ``min(1, p / q)``, which
            accepts a little more often; every decoder writes another text of the same distribution.
        rows: A number for each row of the batch, which its random numbers belong to; ``None`` counts the rows from 0.
            A prompt that keeps its number gets the same text in every batch.

    Raises:
        ValueError: A value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    coupling: Coupling = "gumbel"
    rows: list[int] | None = None

    def __post_init__(self) -> None:
        check_choice("coupling", self.coupling, get_args(Coupling))
        if self.rows is not None:
            if isinstance(self.rows, str) or not isinstance(self.rows, Sequence):
                raise ValueError(f"rows must be a list of whole numbers, got {self.rows!r}: give one for each prompt.")
            for row in self.rows:
                check_count("rows", row, -(2**63))
        for name in ("temperature", "top_p"):
            check_number(name, getattr(self, name))
        check_count("top_k", self.top_k, 0)
        if self.seed is not None:
            check_count("seed", self.seed, -(2**63))
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be above 0 and finite, got {self.temperature}: pass sampling=None for greedy "
                "decoding."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}: use 1 to keep all tokens.")

    @property
    def warpers(self) -> tuple[float, int, float]:
        """The settings that the distribution depends on."""
        return self.temperature, self.top_k, self.top_p

    def scores(self, logits: Tensor) -> Tensor:
        """Logits after the warpers: log-probabilities up to a constant, minus infinity where a token is not kept.

        Args:
            logits: ``[..., vocabulary]``.

        Returns:
            Scores of the same shape, in float64 for float64 logits and in float32 otherwise.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature != 1.0:
            scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            smallest = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < smallest, -torch.inf)
        if self.top_p < 1.0:
            ascending, order = scores.sort(dim=-1)
            # remove the least likely tokens while their total is at most 1 - top_p; always keep the most likely one
            remove = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            remove[..., -1] = False
            scores = scores.masked_fill(remove.scatter(-1, order, remove), -torch.inf)
        return scores

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that tokens are drawn from.

        Args:
            logits: ``[..., vocabulary]``.

        Returns:
            Probabilities of the same shape, in float64 for float64 logits and in float32 otherwise.
        """
        return self.scores(logits).softmax(-1)

    def perturbed(self, logits: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Scores plus the noise of their places; the largest of them is the token that is drawn there.

        Args:
            logits: ``[rows, places, vocabulary]``.
            keys: ``[rows]`` long, from :meth:`keys`.
            positions: ``[rows, places]`` long, where in the rows' texts the tokens stand, from 0.

        Returns:
            ``[rows, places, vocabulary]`` float64.
        """
        return self.scores(logits) + gumbel_noise(keys, positions, logits.shape[-1])

    def proposals(self, logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one token for each row and returns it with its distribution.

        Args:
            logits: ``[rows, vocabulary]``.
            points: ``[rows]`` float64 in [0, 1), uniform random numbers.

        Returns:
            ``[rows, vocabulary]`` probabilities and ``[rows, 1]`` ids. A row with NaN logits gets token 0; verification
            then raises an error.
        """
        distribution = self.probabilities(logits)
        return distribution, draw_on_device(distribution, points).clamp(min=0)[:, None]

    def seeded(self) -> Self:
        """The same settings with a seed: their own, or one drawn from torch's global generator."""
        return self if self.seed is not None else replace(self, seed=int(torch.randint(2**62, ()).item()))

    def numbers(self, rows: int) -> Sequence[int]:
        """The numbers of a batch's rows."""
        return range(rows) if self.rows is None else self.rows

    def keys(self, rows: int) -> list[int]:
        """The key of each row's noise, for settings that have a seed."""
        return [key_of(self.seed, row) for row in self.numbers(rows)]

    def streams(self, rows: int) -> list[random.Random]:
        """One generator of uniform random numbers for each row, for settings that have a seed."""
        return [random.Random(f"{self.seed}/{row}") for row in self.numbers(rows)]


def draw(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Draws one token from each row by inverting the cumulative distribution.

    Args:
        probabilities: ``[rows, vocabulary]``, not negative; rows need not sum to 1.
        uniforms: One number in [0, 1) for each row.

    Returns:
        One token id for each row, never one of probability 0.

    Raises:
        ValueError: A row holds NaN or sums to 0.
    """
    tokens: list[int] = draw_on_device(probabilities, to_device(uniforms, probabilities.device, torch.float64)).tolist()
    if -1 in tokens:
        raise ValueError(NO_DISTRIBUTION)
    return tokens


def draw_on_device(probabilities: Tensor, points: Tensor) -> Tensor:
    """Like :func:`draw`, without waiting for the device.

    Args:
        probabilities: ``[rows, vocabulary]``.
        points: ``[rows]`` float64 in [0, 1), uniform random numbers.

    Returns:
        ``[rows]`` token ids; -1 where a row holds NaN or sums to 0.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, points[:, None] * total, right=True)
    # u * total may round to the total: then draw the last token of non-zero probability, the first to reach the total
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(index, last).masked_fill(~(total > 0), -1)[:, 0]
