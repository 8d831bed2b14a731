"""Inter-Attn: attention is the scorer's weights when contents are equal."""

import pytest
import torch

from saccade.modules.multimodal.layers import InterAttn


def test_attention_is_the_weights_when_contents_are_equal():
    layer = InterAttn(8, 4)
    layer.project.weight.data.zero_()
    weights = torch.tensor([[0.7, 0.2, 0.1]])
    found = layer.attention(torch.randn(1, 3, 8), weights)
    assert torch.allclose(found, weights[:, None, None].expand(1, 4, 3, 3), atol=1e-5)
    layer.strength_logit.data.fill_(-30.0)  # a strength of 0
    assert torch.allclose(layer.attention(torch.randn(1, 3, 8), weights), torch.full((1, 4, 3, 3), 1 / 3), atol=1e-5)


@pytest.mark.parametrize("fusion", ["attention", "concatenation"])
def test_fusion_is_finite_with_a_weight_of_zero(fusion):
    layer = InterAttn(8, 4, fusion=fusion)
    found = layer(torch.randn(2, 3, 8), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]]))
    assert found.shape == (2, 16)
    assert bool(torch.isfinite(found).all())
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_strength_begins_at_one():
    assert float(InterAttn(8, 4).strength.detach()) == pytest.approx(1, abs=1e-6)
    assert float(InterAttn(8, 4, fusion="concatenation").strength) == 0


def test_a_weight_of_zero_keeps_a_modality_out():
    """Of the modalities' positions and of the weighted half of the fused vector."""
    layer, weights = InterAttn(8, 4).eval(), torch.tensor([[0.6, 0.4, 0.0]])
    layer.strength_logit.data.fill_(3.0)  # 1e-6 is added to the weights, and the strength cubes it
    vectors = torch.randn(1, 3, 8)
    other = vectors.clone()
    other[:, 2] = torch.randn(8)
    assert torch.allclose(layer(vectors, weights)[:, :8], layer(other, weights)[:, :8], atol=1e-5)
    other[:, 1] = torch.randn(8)
    assert not torch.allclose(layer(vectors, weights)[:, :8], layer(other, weights)[:, :8], atol=1e-2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: InterAttn(8, 3), "heads must divide width"),
        (lambda: InterAttn(8, 0), "heads must be at least 1"),
        (lambda: InterAttn(8, fusion="x"), "fusion must be one of"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
