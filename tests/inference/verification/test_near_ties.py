"""Near ties: what rounding explains follows from the spacing of the numbers, and wrong tokens stay wrong."""

from __future__ import annotations

import math

import pytest
import torch

from saccade.inference import Autoregressive, Sampling
from saccade.inference.noise import gumbel_noise
from saccade.inference.verification.near_ties import (
    SPACINGS,
    NearTie,
    _kept,
    first_difference,
    rounding_limit,
    spacing,
)
from tests.support.models import prompts, tiny_model


@pytest.mark.parametrize("dtype", SPACINGS, ids=str)
def test_the_spacing_is_the_distance_of_neighbours(dtype: torch.dtype) -> None:
    for size in (0.013, 0.5, 1.0, 1.7, 15.9, 16.0, 20.0, 31.9, 32.0, 3000.0):
        number = torch.tensor(size, dtype=dtype)
        if dtype in (torch.float32, torch.float64):
            away = float(torch.nextafter(number, torch.tensor(math.inf, dtype=dtype)).double() - number.double())
        else:
            away = float((number.view(torch.int16) + 1).view(dtype).double() - number.double())
        assert spacing(float(number), dtype) == spacing(-float(number), dtype) == away
    assert 0 < spacing(0.0, dtype) <= torch.finfo(dtype).smallest_normal


def test_the_limit_grows_with_the_logits() -> None:
    logits = torch.tensor([20.0, 3.0, -8.0, -torch.inf], dtype=torch.bfloat16)
    assert rounding_limit(logits) == 4 * 0.125
    assert rounding_limit(logits * 2) == 4 * 0.25
    assert rounding_limit(logits.float(), torch.bfloat16) == 4 * 0.125  # computed in bfloat16, handed out in float32
    assert rounding_limit(logits.float()) == 32 * 2.0**-19
    # a best logit that happens to be nearly 0 is a sum as large as the others
    assert rounding_limit(torch.tensor([0.01, -20.0, -22.0], dtype=torch.bfloat16)) == 4 * 0.125
    assert rounding_limit(torch.full((3,), -torch.inf)) > 0


def test_both_tokens_must_be_as_good_as_the_best() -> None:
    logits = torch.tensor([20.0, 19.75, 19.5, 19.25, 5.0], dtype=torch.bfloat16)
    gaps = {tokens: NearTie.of(logits, tokens) for tokens in ((0, 1), (0, 2), (1, 2), (0, 3), (0, 4))}
    assert [tie.gap for tie in gaps.values()] == [0.25, 0.5, 0.5, 0.75, 15.0]
    # a third token that ties with the best does not excuse a wrong one
    assert [tie.near for tie in gaps.values()] == [True, True, True, False, False]


def test_sampled_tokens_are_compared_with_their_noise() -> None:
    logits = torch.tensor([20.0, 19.0, 10.0, 9.0], dtype=torch.float64)
    noise = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert NearTie.of(logits, (0, 1), None, Sampling(), noise).near
    assert not NearTie.of(logits, (0, 1)).near
    assert NearTie.of(logits, (0, 2), None, Sampling(), noise).gap == 10.0
    # half the temperature: twice the difference of scores for the same one of logits
    assert NearTie.of(logits, (0, 1), None, Sampling(temperature=0.5), noise).gap == pytest.approx(0.5)
    with pytest.raises(ValueError, match="noise must be"):
        NearTie.of(logits, (0, 1), None, Sampling())


def test_tokens_at_the_border_of_what_is_kept() -> None:
    # top-k: the second and third logit are neighbours, so either may be kept; the noise prefers whichever is
    logits = torch.tensor([20.0, 10.0, 10.0 - 1e-15, 4.0], dtype=torch.float64)
    noise = torch.tensor([0.0, 30.0, 20.0, 40.0], dtype=torch.float64)
    two = Sampling(top_k=2)
    assert NearTie.of(logits, (1, 0), None, two, noise).near
    assert NearTie.of(logits, (2, 0), None, two, noise).near
    assert NearTie.of(logits, (3, 0), None, two, noise).gap == math.inf
    # top-p: the second token is kept or not by the last digit of a sum
    law = torch.tensor([0.75, 0.15, 0.1], dtype=torch.float64).log()
    border = Sampling(top_p=0.75)
    shoved = torch.tensor([0.0, 9.0, 0.0], dtype=torch.float64)
    assert NearTie.of(law, (0, 1), None, border, shoved).near
    assert NearTie.of(law, (0, 2), None, border, shoved).gap == math.inf
    assert NearTie.of(law, (0, 1), None, Sampling(top_p=0.7), shoved).gap == math.inf
    # two tokens with one logit, of which one is kept: either may be
    tied = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64).log()
    for token, pushed in ((1, [0.0, 9.0, 0.0]), (2, [0.0, 0.0, 9.0])):
        assert NearTie.of(tied, (0, token), None, Sampling(top_p=0.7), torch.tensor(pushed).double()).near


@pytest.mark.parametrize("sampling", [Sampling(top_k=7), Sampling(top_p=0.8), Sampling(0.7, 9, 0.6)], ids=str)
def test_what_is_kept_is_what_sampling_keeps(sampling: Sampling) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(50, generator=draw, dtype=torch.float64)
        scores = sampling.scores(logits)
        kept = [_kept(logits / sampling.temperature, sampling, slack) for slack in (-0.1, 0.0, 0.1)]
        assert torch.equal(kept[1], scores > -torch.inf)
        assert (kept[0] <= kept[1]).all()
        assert (kept[1] <= kept[2]).all()
        assert kept[0].sum() < kept[2].sum()


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.9, seed=4)], ids=["greedy", "sampled"])
def test_the_first_difference_of_two_texts(sampling: Sampling | None) -> None:
    model = tiny_model()
    batch = prompts(model, [6, 6, 6])
    prompt = batch["input_ids"][2].tolist()
    right = Autoregressive().generate(model, **batch, max_new_tokens=9, sampling=sampling).tokens[2]
    wrong = [*right[:5], (right[5] + 1) % 40, *right[6:]]
    found = first_difference(model, prompt, wrong, right, sampling=sampling, row=2)
    assert found.gap > 1e-4
    assert not found.near
    logits = model(torch.tensor([prompt + right[:5]])).logits[0, -1]
    noise = None
    if sampling is not None:
        noise = gumbel_noise(torch.tensor(sampling.keys(3)[2:]), torch.tensor([[6 + 5]]), 40)[0, 0]
    assert found.gap == pytest.approx(NearTie.of(logits, [wrong[5]], None, sampling, noise).gap)
    assert NearTie.of(logits, [right[5]], None, sampling, noise).gap == 0
    assert first_difference(model, prompt, right[:4], right).gap == math.inf
