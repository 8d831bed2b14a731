"""MAE and correlation against numpy; constants are 0 without a warning."""

import warnings

import numpy as np
import pytest
import torch

from saccade.modules.metrics import MeanAbsoluteError, PearsonCorrelation


def result(metric, preds, target, batches=4):
    for pair in zip(torch.as_tensor(preds).chunk(batches), torch.as_tensor(target).chunk(batches), strict=True):
        metric.update(*pair)
    return float(metric.compute())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_against_numpy(offset):
    draw = np.random.default_rng(1)
    target = draw.normal(size=700).astype(np.float32)
    preds = (0.3 * target + draw.normal(size=700) + offset).astype(np.float32)
    wide = preds.astype(np.float64), target.astype(np.float64)
    assert result(MeanAbsoluteError(), preds, target) == pytest.approx(np.abs(wide[0] - wide[1]).mean(), rel=1e-6)
    assert result(PearsonCorrelation(), preds, target) == pytest.approx(np.corrcoef(*wide)[0, 1], abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, -2.7, 1000.1])
def test_constant_predictions_tell_nothing(constant):
    target = torch.randn(500, generator=torch.Generator().manual_seed(0))
    rounding = constant * (1 + 6e-8 * torch.randn(500, generator=torch.Generator().manual_seed(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for preds in (torch.full_like(target, constant), rounding):
            assert result(PearsonCorrelation(), preds, target) == 0
            assert result(PearsonCorrelation(), target, preds) == 0
        assert result(PearsonCorrelation(), target[:1], target[:1], 1) == 0


def test_small_variation_is_not_constant():
    target = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert result(PearsonCorrelation(), 0.1 + 1e-4 * target, target) == pytest.approx(1, abs=1e-3)


def test_what_is_not_a_number_shows():
    target = torch.tensor([0.0, 1.0, 2.0])
    preds = torch.tensor([0.0, float("nan"), 2.0])
    assert np.isnan(result(MeanAbsoluteError(), preds, target, 1))
    assert np.isnan(result(PearsonCorrelation(), preds, target, 1))


def test_sums_stay_float64_when_the_module_is_cast():
    """`precision: bf16-true` casts the module; the sum of many errors would stand still at 256."""
    for metric, expected in ((MeanAbsoluteError(), 1.0), (PearsonCorrelation(), 1.0)):
        cast = torch.nn.ModuleList([metric]).to(torch.bfloat16)[0]
        target = torch.arange(1000.0) / 10
        assert result(cast, target + 1, target, 100) == pytest.approx(expected, abs=1e-5)
        assert all(getattr(cast, name).dtype in (torch.float64, torch.long) for name in cast._defaults)
        cast.reset()
        assert all(getattr(cast, name).dtype in (torch.float64, torch.long) for name in cast._defaults)
