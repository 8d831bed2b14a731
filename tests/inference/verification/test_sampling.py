"""Settings of the sampling law, and drawing by inverting the cumulative distribution."""

import pytest
import torch

from saccade.inference import Sampling
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
