"""Near ties: places where rounding, and not a mistake, decides which token a model chooses.

A forward over several tokens adds in another order than a forward over one, so its logits differ in the last digits.
How much that is depends on the precision and on the size of the logits: neighbouring bfloat16 numbers are 0.125 apart
from 16 to 32, neighbouring float32 numbers 2e-6. So the limit is a multiple of that distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.models import precision_of
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.noise import gumbel_noise
from saccade.inference.sampling import Sampling

SPACINGS = {torch.bfloat16: 4, torch.float16: 4, torch.float32: 32, torch.float64: 32}
"""Two logits that are at most this many distances of neighbouring numbers apart may change places by rounding.

Half precision adds in float32 and rounds the sum; float32 rounds every addition. Measured on a language model of 30
layers with logits up to 42, steps of one token against steps of nine: in 99 of 100 places the difference of the two
best logits changes by at most 3 distances in bfloat16, and by 21 in float32.
"""


def spacing(size: float, dtype: torch.dtype) -> float:
    """Distance of the neighbouring numbers of a type at a given size.

    >>> spacing(20.0, torch.bfloat16), spacing(-1.5, torch.float64) == 2**-52
    (0.125, True)

    Args:
        size: A number; its sign does not matter.
        dtype: A floating-point type.
    """
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(torch.tensor(abs(size), dtype=torch.float64))
    return float(info.eps * max(2.0 ** (int(exponent) - 1) if size else 0.0, info.smallest_normal))


def rounding_limit(logits: Tensor, dtype: torch.dtype | None = None) -> float:
    """Largest difference of two logits that rounding explains.

    It belongs to the size of the best logit; or to that of the median, where the best one is nearly 0 by chance among
    large ones, whose sums it shares.

    Args:
        logits: ``[vocabulary]``; ids that are minus infinity do not count.
        dtype: Precision in which the model computes; ``None`` is that of the logits.
    """
    known = logits.detach()[logits.isfinite()].double().abs()
    size = max(abs(float(logits.detach().max())), float(known.median())) if len(known) else 0.0
    dtype = logits.dtype if dtype is None else dtype
    return SPACINGS[dtype] * spacing(size, dtype)


@dataclass(frozen=True)
class NearTie:
    """How close to each other tokens are that different forwards of one model chose at the same place.

    Args:
        gap: By how much the least of the tokens is below the best one, in logits; infinite where sampling never draws
            it.
        limit: Largest gap that rounding explains.
    """

    gap: float
    limit: float

    @property
    def near(self) -> bool:
        """Whether rounding explains that the tokens differ."""
        return self.gap <= self.limit

    @classmethod
    def of(
        cls,
        logits: Tensor,
        tokens: Sequence[int],
        dtype: torch.dtype | None = None,
        sampling: Sampling | None = None,
        noise: Tensor | None = None,
    ) -> NearTie:
        """Judges tokens that were chosen at one place.

        Sampled tokens are compared after temperature and noise. Rounding may also move a token over the border of top-k
        and top-p: one that is close to the border counts as kept, and is not what the others have to reach.

        Args:
            logits: ``[vocabulary]`` of the target at that place.
            tokens: The tokens that were chosen.
            dtype: Precision in which the model computes; ``None`` is that of the logits.
            sampling: How the tokens were drawn; ``None`` is greedy.
            noise: ``[vocabulary]`` noise of the place; needed where tokens were drawn.
        """
        limit = rounding_limit(logits, dtype)
        scale = 1.0 if sampling is None else sampling.temperature
        scores = logits.detach().double() / scale
        reached = best = scores
        if sampling is not None:
            if noise is None:
                raise ValueError("noise must be that of the place where tokens were drawn, got None: pass it.")
            reached, best = (
                (scores + noise).masked_fill(~_kept(scores, sampling, slack / scale), -torch.inf)
                for slack in (limit, -limit)
            )
        return cls(scale * max(0.0, float(best.max() - reached[list(tokens)].min())), limit)


def _kept(scores: Tensor, sampling: Sampling, slack: float) -> Tensor:
    """``[vocabulary]`` bool: what top-k and top-p keep if other tokens are better from ``slack`` above a token on."""
    better = len(scores) - torch.searchsorted(scores.sort().values, scores + slack, right=True)
    kept = torch.ones_like(scores, dtype=torch.bool)
    if 0 < sampling.top_k < len(scores):
        kept = better < sampling.top_k
    if sampling.top_p < 1:
        descending = scores.masked_fill(~kept, -torch.inf).softmax(-1).sort(descending=True).values
        mass = torch.cat([descending.new_zeros(1), descending.cumsum(-1)])
        kept &= mass[better] < sampling.top_p + slack
    return kept | (scores == scores.max())


def first_difference(
    model: nn.Module,
    prompt: Sequence[int],
    first: Sequence[int],
    second: Sequence[int],
    *,
    visual: Mapping[str, Tensor] | None = None,
    sampling: Sampling | None = None,
    row: int = 0,
    compressor: CacheCompressor | None = None,
) -> NearTie:
    """Judges the first place at which two texts of one prompt differ, with a forward of the target.

    Args:
        model: The target.
        prompt: Token ids.
        first: New tokens of a text.
        second: New tokens of another text, not equal to the first.
        visual: Images and videos of the prompt.
        sampling: How both texts were drawn, with a seed and with noise; ``None`` is greedy.
        row: The prompt's number in the batch, for its noise.
        compressor: What was left of the prompt's cache; the target then continues that cache, token by token.

    Returns:
        The two tokens at that place. Where one text is the beginning of the other, which rounding does not explain, the
        gap is infinite.
    """
    pairs = list(zip(first, second, strict=False))
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    if same is None:
        return NearTie(math.inf, 0.0)
    text = [*prompt, *second[:same]]
    read = text if compressor is None else list(prompt)
    with Session(model, len(text), compressor=compressor) as session:
        seen = read_visual_prompts(model, [read], visual) if visual else None
        logits = session.prefill([read], seen)[0]
        for token in text[len(read) :]:
            logits = session.forward(session.token_column([token]))[0, -1]
            session.commit([[0]])
    noise = None
    if sampling is not None:
        (key,) = replace(sampling, rows=[row]).keys(1)
        place = torch.tensor([key, len(text)], device=logits.device)
        noise = gumbel_noise(place[:1], place[None, 1:], len(logits))[0, 0]
    return NearTie.of(logits, pairs[same], precision_of(model), sampling, noise)
