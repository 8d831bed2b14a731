"""The distribution of sampled texts: what it must be, and how far the texts of a decoder are from it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from saccade.inference import Autoregressive, Decoder, Sampling

VOCABULARY, NEW, RUNS = 3, 5, 10_000
PROMPT = [2, 0, 2, 0]  # holds n-grams, so that prompt lookup drafts
_BATCH = 5_000


def law(model: PreTrainedModel, sampling: Sampling) -> torch.Tensor:
    """Probability of each of the 243 continuations of the prompt, with transformers' own forward and warpers.

    Args:
        model: A model with a vocabulary of three tokens.
        sampling: Temperature, top-k and top-p.
    """
    texts = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=NEW)))
    ids = torch.cat([torch.tensor(PROMPT).expand(len(texts), -1), texts], 1)
    with torch.no_grad():
        logits = model(ids).logits[:, len(PROMPT) - 1 : -1].reshape(-1, VOCABULARY)
    scores = TemperatureLogitsWarper(sampling.temperature)(ids, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    steps = scores.softmax(-1).reshape(len(texts), NEW, VOCABULARY)
    return steps.gather(-1, texts[..., None])[..., 0].prod(-1)


def deviation(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Standard score of a chi-square statistic, also for few cells (Wilson and Hilferty's cube root).

    Cells that expect fewer than 5 are taken together.

    Args:
        counts: How often each outcome was seen.
        probabilities: What the law gives it.
    """
    assert counts[probabilities == 0].sum() == 0, "an impossible outcome"
    expected = probabilities * counts.sum()
    rare = expected < 5
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    ratio = float(((seen - wanted) ** 2 / wanted).sum()) / freedom
    spread = 2 / (9 * freedom)
    return (ratio ** (1 / 3) - (1 - spread)) / spread**0.5


def measured(
    decoder: Decoder,
    sampling: Sampling,
    model: PreTrainedModel,
    runs: int = RUNS,
    wanted: torch.Tensor | None = None,
) -> float:
    """Standard score of a decoder's texts: its rows are one prompt, each with a random stream of its own.

    Args:
        decoder: The decoder.
        sampling: How it draws.
        model: A model with a vocabulary of three tokens.
        runs: Number of texts.
        wanted: Probabilities of the texts; ``None`` takes those of the model.
    """
    counts = torch.zeros(VOCABULARY**NEW, dtype=torch.float64)
    powers = VOCABULARY ** torch.arange(NEW - 1, -1, -1)
    drafted = 0
    for start in range(0, runs, _BATCH):
        ids = torch.tensor(PROMPT).expand(min(_BATCH, runs - start), -1)
        drawn = replace(sampling, seed=1000 + start // _BATCH)
        out = decoder.generate(model, ids, max_new_tokens=NEW, sampling=drawn, eos_token_id=())
        counts += torch.bincount((torch.tensor(out.tokens) * powers).sum(-1), minlength=len(counts))
        drafted += out.stats.drafted
    assert drafted > 0 or isinstance(decoder, Autoregressive)
    return deviation(counts, law(model, sampling) if wanted is None else wanted)
