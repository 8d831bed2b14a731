"""The stem: standardised, clipped, marked; nothing is read where nothing is there."""

import torch

from saccade.modules.multimodal.layers import Stem


def test_stem_standardises_clips_and_marks():
    stem = Stem(2, 8, torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))
    values = torch.tensor([[[3.0, 0.5], [1180.0, 0.0], [7.0, 7.0]]])
    available = torch.tensor([[1.0, 1.0, 0.0]])
    assert torch.allclose(stem.scaled(values, available), torch.tensor([[[1.0, 0.5], [10.0, 0.0], [0.0, 0.0]]]))
    other = values.clone()
    other[:, 2] = -50.0  # nothing is read where nothing is there
    assert torch.equal(stem(values, available), stem(other, available))
    blind = Stem(2, 8, torch.zeros(2), torch.ones(2), marker=False)
    assert blind.marker is None


def test_a_fraction_lies_between_the_row_and_the_marker():
    stem = Stem(2, 8, torch.zeros(2), torch.ones(2))
    values = torch.tensor([[[3.0, 0.5]]])
    whole, half, none = (stem(values, torch.tensor([[share]])) for share in (1.0, 0.5, 0.0))
    assert torch.allclose(half, (whole + none) / 2, atol=1e-6)
    assert torch.allclose(whole[0, 0] - none[0, 0], stem.project(values[0, 0]) - stem.marker, atol=1e-6)
    assert torch.allclose(none[0, 0] - stem.marker, torch.tensor([0.0] * 4 + [1.0] * 4), atol=1e-6)  # code of place 0


def test_without_a_marker_a_missing_row_is_a_row_of_means():
    mean = torch.tensor([4.0, -2.0])
    blind = Stem(2, 8, mean, torch.ones(2), marker=False)
    values = torch.stack([mean, torch.tensor([9.0, 9.0])])[None]
    gone = blind(values, torch.tensor([[1.0, 0.0]]))
    swapped = blind(values.flip(1), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(gone, swapped)


def test_odd_widths():
    assert Stem(2, 7, torch.zeros(2), torch.ones(2))(torch.ones(1, 3, 2), torch.ones(1, 3)).shape == (1, 3, 7)
