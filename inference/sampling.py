"""The sampling law: temperature, top-k, top-p, and reproducible random numbers, one stream for each row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.common.checks import check_count, check_number
from saccade.common.transfer import to_device

NO_DISTRIBUTION = "the model's logits hold NaN or no finite value: check its weights and its precision."

NO_DRAFT_DISTRIBUTION = (
    "the draft's logits hold NaN or no finite value: check the draft model's weights and its precision, or use another "
    "decoder."
)


@dataclass
class Sampling:
    """How tokens are drawn. Leave it away for greedy decoding.

    The warpers are applied in the order of ``model.generate``: temperature, top-k, top-p.

    Args:
        temperature: Divides the logits; above 0. Greedy decoding is ``sampling=None``, not temperature 0.
        top_k: Keeps the ``top_k`` largest logits (and what ties with the last of them); 0 keeps all.
        top_p: Keeps the smallest set of tokens whose probability reaches ``top_p``; 1 keeps all.
        seed: Seed of the random streams; ``None`` takes one from torch's global generator. Every row has its own
            stream, so that what a row draws does not depend on the rest of the batch.

    Raises:
        ValueError: A value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            check_number(name, getattr(self, name))
        check_count("top_k", self.top_k, 0)
        if self.seed is not None:
            check_count("seed", self.seed, -(2**63))
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be above 0 and finite, got {self.temperature}: leave sampling away for greedy "
                "decoding."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")

    @property
    def warpers(self) -> tuple[float, int, float]:
        """All that the distribution depends on."""
        return self.temperature, self.top_k, self.top_p

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is sampled from.

        Args:
            logits: ``[..., vocabulary]``.

        Returns:
            Probabilities of the same shape, in float64 for float64 logits and in float32 otherwise.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature != 1.0:
            scores = scores / self.temperature
        if 0 < self.top_k < scores.shape[-1]:
            floor = scores.topk(self.top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < floor, -torch.inf)
        if self.top_p < 1.0:
            ascending, order = scores.sort(dim=-1)
            # the tokens whose mass from the smallest upwards stays within 1 - top_p go; the largest always stays
            remove = ascending.softmax(-1).cumsum(-1) <= 1 - self.top_p
            remove[..., -1] = False
            scores = scores.masked_fill(remove.scatter(-1, order, remove), -torch.inf)
        return scores.softmax(-1)

    def proposals(self, logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """One drawn token for each row, and the distribution it was drawn from.

        Args:
            logits: ``[rows, vocabulary]``.
            points: ``[rows]`` float64 in [0, 1).

        Returns:
            ``[rows, vocabulary]`` and ``[rows, 1]`` ids; a row that holds NaN gets token 0, which verification refuses.
        """
        distribution = self.probabilities(logits)
        return distribution, draw_on_device(distribution, points).clamp(min=0)[:, None]

    def streams(self, rows: int) -> list[random.Random]:
        """One stream of uniform random numbers for each row."""
        seed = int(torch.randint(2**62, ()).item()) if self.seed is None else self.seed
        return [random.Random(f"{seed}/{row}") for row in range(rows)]


def draw(probabilities: Tensor, uniforms: Sequence[float]) -> list[int]:
    """Draws one token from each row by inverting the cumulative distribution.

    Args:
        probabilities: ``[rows, vocabulary]``, not negative; rows need not sum to 1.
        uniforms: One number in [0, 1) for each row.

    Returns:
        One token id for each row, never one of probability 0.

    Raises:
        ValueError: A row holds NaN or has no mass.
    """
    tokens: list[int] = draw_on_device(probabilities, to_device(uniforms, probabilities.device, torch.float64)).tolist()
    if -1 in tokens:
        raise ValueError(NO_DISTRIBUTION)
    return tokens


def draw_on_device(probabilities: Tensor, points: Tensor) -> Tensor:
    """Like :func:`draw`, without waiting for the device.

    Args:
        probabilities: ``[rows, vocabulary]``.
        points: ``[rows]`` float64 in [0, 1).

    Returns:
        ``[rows]`` token ids; -1 where a row holds NaN or has no mass.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, points[:, None] * total, right=True)
    # rounding may put u * total on the total itself: the last token that has mass is meant, the first to reach it
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(index, last).masked_fill(~(total > 0), -1)[:, 0]
