"""Settings of the sampling law, noise from a counter, and drawing by inverting the cumulative distribution."""

import math

import pytest
import torch

from saccade.common.counters import key_of
from saccade.inference import Sampling
from saccade.inference.noise import gumbel_noise
from saccade.inference.sampling import draw


def test_draw_inverts_the_cumulative_distribution():
    law = torch.tensor([[0.25, 0.5, 0.25]]).repeat(5, 1)
    assert draw(law, [0.0, 0.24, 0.25, 0.74, 0.76]) == [0, 0, 1, 1, 2]


def test_a_token_without_mass_is_never_drawn():
    law = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(3, 1)
    assert draw(law, [0.0, 0.5, 1 - 2**-53]) == [1, 3, 3]


@pytest.mark.parametrize("total", [1.0, 0.3, 3e-5])
def test_rounding_at_the_end_falls_on_the_last_token_with_mass(total):
    law = torch.tensor([[total, 0.0]], dtype=torch.float64)
    # 1.0 stands for a product u * total that was rounded up to the total itself
    assert draw(law, [1.0]) == [0]


def test_rows_without_mass_or_with_nan_are_refused():
    for bad in (torch.zeros(1, 3), torch.full((1, 3), torch.nan)):
        with pytest.raises(ValueError, match="NaN or no finite value"):
            draw(bad, [0.5])


def test_warpers_are_those_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = Sampling(temperature=0.7, top_k=12, top_p=0.8).probabilities(logits)
    theirs = logits
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(12), TopPLogitsWarper(0.8)):
        theirs = warper(None, theirs)
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=0, atol=1e-14)
    assert (ours > 0).sum(-1).max() < 12


def test_streams_depend_on_seed_and_row_alone():
    few, many = Sampling(seed=3).streams(2), Sampling(seed=3).streams(5)
    assert [stream.random() for stream in few] == [stream.random() for stream in many][:2]
    assert Sampling(seed=3).streams(1)[0].random() != Sampling(seed=4).streams(1)[0].random()


def noise(seed: int, rows: int, positions: int, vocabulary: int) -> torch.Tensor:
    keys = torch.tensor([key_of(seed, row) for row in range(rows)])
    return gumbel_noise(keys, torch.arange(positions).expand(rows, -1), vocabulary)


def test_noise_depends_on_row_position_and_token_alone():
    whole = noise(3, 4, 6, 50)
    keys = torch.tensor([key_of(3, row) for row in (2, 0)])
    part = gumbel_noise(keys, torch.tensor([[5, 1], [0, 5]]), 30)
    assert torch.equal(part[0], whole[2, [5, 1], :30])
    assert torch.equal(part[1], whole[0, [0, 5], :30])
    assert len(whole.unique()) == whole.numel()
    assert not (noise(4, 4, 6, 50) == whole).any()


def test_noise_has_the_gumbel_law_and_its_tail():
    drawn = noise(0, 20, 50, 1000).flatten()
    # the largest distance from the law of a sample of this size exceeds 1.95 in one of a thousand (Kolmogorov)
    law = (-(-drawn.sort().values).exp()).exp()
    steps = torch.arange(1, len(law) + 1) / len(law)
    assert float((law - steps).abs().max()) * len(law) ** 0.5 < 1.95
    for least in (5.0, 8.0, 11.0):  # how many are large is a count of rare events
        expected = len(drawn) * -math.expm1(-math.exp(-least))
        assert abs(int((drawn > least).sum()) - expected) < 4 * expected**0.5
    # numbers next to each other in any direction are independent
    cube = noise(1, 40, 40, 400)
    cube = (cube - cube.mean()) / cube.std()
    for axis in range(3):
        shifted = cube.roll(1, axis)
        assert abs(float((cube * shifted).mean())) < 4 / cube.numel() ** 0.5


def test_the_ends_of_the_noise(monkeypatch):
    for bits, right in ((0, 36.7368), (-1, -3.6037)):
        monkeypatch.setattr("saccade.inference.noise.mixed", lambda numbers, bits=bits: torch.full_like(numbers, bits))
        assert float(gumbel_noise(torch.tensor([5]), torch.tensor([[0]]), 1)) == pytest.approx(right, abs=1e-4)


def test_a_token_that_is_not_kept_is_never_chosen():
    logits = torch.full((1, 1, 60), -torch.inf)
    logits[..., 17] = -1e4  # vocabularies are padded with ids that no text has
    keys = torch.tensor(Sampling(seed=1).keys(1))
    for position in range(50):
        scores = Sampling(temperature=0.5, top_p=0.9).perturbed(logits, keys, torch.tensor([[position]]))
        assert int(scores.argmax()) == 17
