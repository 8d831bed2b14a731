"""The likelihood that the surrogate is fitted by: scikit-learn's figures, at a part of their cost."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from saccade.callbacks.trait.likelihood import Likelihood
from saccade.callbacks.trait.surrogate import fit_surrogate

BOUNDS = np.log([(1e-2, 1e2), (0.3, 30.0), (1e-5, 1.0)])


def observed(count: int, sources: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 3, (count, sources)).astype(float)
    return states, 0.4 + 0.01 * states @ rng.normal(size=sources) + rng.normal(0, 0.004, count)


def theirs(optimizer: str | None) -> GaussianProcessRegressor:
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(3.0, (0.3, 30.0)) + WhiteKernel(0.1, (1e-5, 1.0))
    return GaussianProcessRegressor(
        kernel, alpha=1e-10, optimizer=optimizer, normalize_y=True, n_restarts_optimizer=1, random_state=0
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 9), *(st.floats(low + 1e-6, high) for low, high in BOUNDS))
def test_value_and_gradient_are_those_of_scikit_learn(
    count: int, sources: int, seed: int, amplitude: float, length: float, noise: float
) -> None:
    states, scores = observed(count, sources, seed)
    theta = np.array([amplitude, length, noise])
    model = theirs(None).fit(states, scores)
    model.kernel_ = model.kernel  # scikit-optimize has taken the noise out of the fitted one
    value, gradient = model.log_marginal_likelihood(theta, eval_gradient=True)
    mine, slope = Likelihood(states, scores, 1e-10)(theta)
    assert mine == pytest.approx(-value, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(slope, -gradient, rtol=1e-4, atol=1e-4 * (1 + np.abs(gradient).max()))


@pytest.mark.parametrize(("count", "sources"), [(6, 4), (20, 4), (40, 8), (90, 28)])
def test_the_fit_is_as_likely_as_that_of_scikit_learn(count: int, sources: int) -> None:
    states, scores = observed(count, sources, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slow = theirs("fmin_l_bfgs_b").fit(states, scores)
    fast = fit_surrogate(states.astype(int).tolist(), scores.tolist())
    assert fast.log_marginal_likelihood_value_ >= slow.log_marginal_likelihood_value_ - 1e-3


def test_it_is_not_asked_more_often_than_needed() -> None:
    states, scores = observed(40, 8, 0)
    asked = []

    class Counted(Likelihood):
        def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
            asked.append(theta)
            return super().__call__(theta)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the slow objective was asked")

    _, value = Counted(states, scores).optimizer(refuse, np.log([1.0, 3.0, 0.1]), BOUNDS)
    assert value == min(Likelihood(states, scores)(theta)[0] for theta in asked)
    assert len(asked) < 40


def test_equal_scores_and_singular_matrices_are_answered() -> None:
    states, _ = observed(10, 2, 0)
    value, gradient = Likelihood(states, np.full(10, 0.4))(np.log([1.0, 3.0, 0.1]))
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()
    value, gradient = Likelihood(np.zeros((3, 2)), np.arange(3.0), -1e-3)(np.log([1.0, 3.0, 1e-5]))
    assert value == math.inf
    assert (gradient == 0).all()
