"""The surrogate model of Trait: a Gaussian process over states, and the expected improvement computed from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr  # type: ignore[import-untyped]
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from saccade.callbacks.gaussian_process import fit_process, single_thread


def fit_surrogate(
    states: Sequence[Sequence[int]],
    scores: Sequence[float],
    surrogate: Literal["corrected", "released"] = "corrected",
    seed: int = 0,
) -> GaussianProcessRegressor:
    """Fit a Gaussian process over states. Equal arguments give an equal process.

    ``corrected`` (ours) is an amplitude times a squared-exponential kernel with one length scale in [0.3, 30], plus
    noise in [1e-5, 1] of the variance of the scores, which are normalised. ``released`` is the process of the
    predecessor of Trait: a squared-exponential kernel alone, which fails to fit two different scores of one state.

    No hyper-parameters are kept from fit to fit, so that a resumed search equals an uninterrupted one.

    Args:
        states: Chunks of each source, one row for each observation.
        scores: Score of each state; larger is better.
        surrogate: Which process.
        seed: Seed of the restarts of the fit.

    Returns:
        The fitted process. It predicts the score itself, not its negative.
    """
    points, values = np.asarray(states, dtype=float), np.asarray(scores, dtype=float)
    if surrogate == "released":
        return fit_process(RBF(0.5, (1e-5, 1e5)), points, values, restarts=10, seed=seed, noise=False)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(3.0, (0.3, 30.0)) + WhiteKernel(0.1, (1e-5, 1.0))
    return fit_process(kernel, points, values, restarts=1, seed=seed)


def posterior(model: GaussianProcessRegressor, states: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Predict the scores of states.

    Args:
        model: A process of :func:`fit_surrogate`.
        states: Chunks of each source, one row for each state.

    Returns:
        Mean and standard deviation ``[states]``, in units of the score and without the noise of the evaluation.
    """
    with single_thread():  # skopt sets a variance that is negative by rounding to 0
        mean, std = model.predict(np.asarray(states, dtype=float), return_std=True)
    return mean, std


def expected_improvement(mean: ArrayLike, std: ArrayLike, best: float, xi: float = 0.0) -> np.ndarray:
    """Compute the expected improvement over ``best + xi`` of scores that are maximised.

    It is D * Phi(u) + s * phi(u) with u = D / s and D = mean - best - xi. scikit-optimize's ``gaussian_ei`` is the same
    for objectives that are minimised.

    Args:
        mean: Predicted scores.
        std: Their standard deviations, 0 or larger.
        best: The best observed score.
        xi: Smallest improvement that counts, in units of the score.

    Returns:
        The expected improvement, at least 0, in the shape of ``mean``.
    """
    gain, std, ratio = _standardised(mean, std, best, xi)
    # far below the best score the two terms cancel, and rounding may leave a negative remainder
    value = np.maximum(gain * ndtr(ratio) + std * _density(ratio), 0.0)
    return np.asarray(np.where(std > 0, value, np.maximum(gain, 0.0)))


def released_improvement(mean: ArrayLike, std: ArrayLike, best: float, xi: float = 0.0) -> np.ndarray:
    """Compute what the predecessor of Trait uses as expected improvement: D * (1 - Phi(u)) + s * phi(u).

    It decreases for u above about 0.55, so it prefers a small improvement to a large one. For comparison only.

    Args:
        mean: Predicted scores.
        std: Their standard deviations, 0 or larger.
        best: The best observed score.
        xi: Smallest improvement that counts, in units of the score.

    Returns:
        The value, which may be negative, in the shape of ``mean``.
    """
    gain, std, ratio = _standardised(mean, std, best, xi)
    value = gain * ndtr(-ratio) + std * _density(ratio)
    return np.asarray(np.where(std > 0, value, np.minimum(gain, 0.0)))


def _standardised(mean: ArrayLike, std: ArrayLike, best: float, xi: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gain = np.asarray(mean, dtype=float) - best - xi
    deviation = np.broadcast_to(np.asarray(std, dtype=float), gain.shape)
    # the callers handle a deviation of 0; close to 0, the square of the ratio would overflow
    ratio = np.clip(gain / np.where(deviation > 0, np.maximum(deviation, 1e-200), 1.0), -1e100, 1e100)
    return gain, deviation, ratio


def _density(ratio: np.ndarray) -> np.ndarray:
    """Density of the standard normal distribution; ten times as fast as ``scipy.stats.norm.pdf``."""
    # above 100 it is 0 in float64, and squares of larger ratios may overflow
    return np.exp(-0.5 * np.clip(ratio, -1e2, 1e2) ** 2) / math.sqrt(2 * math.pi)
