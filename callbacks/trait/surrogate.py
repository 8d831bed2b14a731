"""What Trait believes about states that it has not tried: a Gaussian process and the improvement expected from it."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr  # type: ignore[import-untyped]
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from saccade.callbacks.trait.likelihood import Likelihood

# of the released process: added to the diagonal, and raised when a Cholesky decomposition fails all the same
_JITTER, _MOST_JITTER = 1e-10, 1e-4


def fit_surrogate(
    states: Sequence[Sequence[int]],
    scores: Sequence[float],
    surrogate: Literal["corrected", "released"] = "corrected",
    seed: int = 0,
) -> GaussianProcessRegressor:
    """A Gaussian process over states, by scikit-optimize. Equal arguments give an equal process.

    ``corrected`` (ours) is an amplitude times a squared-exponential kernel with one length scale in [0.3, 30], plus
    noise in [1e-5, 1] of the variance of the scores, which are normalised. ``released`` is the process of the
    predecessor of Trait: a squared-exponential kernel alone, so that two measurements of one state that differ ruin it.

    Nothing is kept from fit to fit, so that a search that was resumed goes on as if it had never stopped; what makes
    ``corrected`` cheap is :class:`~saccade.callbacks.trait.likelihood.Likelihood`.

    Args:
        states: Chunks of each source, one row an observation.
        scores: Score of each state; larger is better.
        surrogate: Which process.
        seed: Of the restarts of the fit.

    Returns:
        The fitted process, of the score itself and not of its negative.
    """
    points, values = np.asarray(states, dtype=float), np.asarray(scores, dtype=float)
    settings: dict[str, Any]
    if surrogate == "released":
        kernel, settings = RBF(0.5, (1e-5, 1e5)), {"n_restarts_optimizer": 10}
    else:
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(3.0, (0.3, 30.0)) + WhiteKernel(0.1, (1e-5, 1.0))
        # with `noise` given, scikit-optimize leaves the noise out of the deviation of what is predicted
        settings = {"n_restarts_optimizer": 1, "normalize_y": True, "noise": "gaussian"}
    jitter = _JITTER
    with _quiet_on_one_thread():  # a length scale at its bound is an answer too
        while True:
            try:
                if surrogate == "corrected":
                    settings["optimizer"] = Likelihood(points, values, jitter).optimizer
                return GaussianProcessRegressor(kernel, alpha=jitter, random_state=seed, **settings).fit(points, values)
            except np.linalg.LinAlgError:
                jitter *= 100
                if jitter > _MOST_JITTER:
                    raise


def posterior(model: GaussianProcessRegressor, states: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the score of states.

    Args:
        model: Of :func:`fit_surrogate`.
        states: Chunks of each source, one row a state.

    Returns:
        Mean and standard deviation ``[states]``, in units of the score and without the noise of measuring.
    """
    with _quiet_on_one_thread():  # a variance that rounding made negative counts as 0
        mean, std = model.predict(np.asarray(states, dtype=float), return_std=True)
    return mean, std


def expected_improvement(mean: ArrayLike, std: ArrayLike, best: float, xi: float = 0.0) -> np.ndarray:
    """By how much a score is expected to exceed ``best + xi``.

    D * Phi(u) + s * phi(u) with u = D / s and D = mean - best - xi.

    For scores that are to be large; scikit-optimize's ``gaussian_ei`` is the same for objectives that are to be small.

    Args:
        mean: Predicted scores.
        std: Their standard deviations, 0 or larger.
        best: The best observation.
        xi: Improvement that does not count, in units of the score.

    Returns:
        The expected improvement, at least 0, in the shape of ``mean``.
    """
    gain, std, ratio = _standardised(mean, std, best, xi)
    # far below the best the two terms cancel, and rounding may leave a negative rest
    value = np.maximum(gain * ndtr(ratio) + std * _density(ratio), 0.0)
    return np.asarray(np.where(std > 0, value, np.maximum(gain, 0.0)))


def released_improvement(mean: ArrayLike, std: ArrayLike, best: float, xi: float = 0.0) -> np.ndarray:
    """What the predecessor of Trait computes in its place: D * (1 - Phi(u)) + s * phi(u).

    It falls again for u above about 0.55, so it prefers a slight improvement to a large one. For comparison only.

    Args:
        mean: Predicted scores.
        std: Their standard deviations, 0 or larger.
        best: The best observation.
        xi: Improvement that does not count, in units of the score.

    Returns:
        The value, which may be negative, in the shape of ``mean``.
    """
    gain, std, ratio = _standardised(mean, std, best, xi)
    value = gain * ndtr(-ratio) + std * _density(ratio)
    return np.asarray(np.where(std > 0, value, np.minimum(gain, 0.0)))


def _standardised(mean: ArrayLike, std: ArrayLike, best: float, xi: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gain = np.asarray(mean, dtype=float) - best - xi
    deviation = np.broadcast_to(np.asarray(std, dtype=float), gain.shape)
    # a deviation of 0 leads to the limit, which both formulas take on their own; next to 0 the square would overflow
    ratio = np.clip(gain / np.where(deviation > 0, np.maximum(deviation, 1e-200), 1.0), -1e100, 1e100)
    return gain, deviation, ratio


def _density(ratio: np.ndarray) -> np.ndarray:
    """Of the standard normal distribution; scipy's object spends ten times as long on checks."""
    # beyond 100 it is 0 in float64, and squares of larger ratios may overflow
    return np.exp(-0.5 * np.clip(ratio, -1e2, 1e2) ** 2) / math.sqrt(2 * math.pi)


@functools.cache
def _threads() -> ThreadpoolController:
    """The linear algebra that is loaded now; looking for it takes 4 ms, as long as a fit."""
    return ThreadpoolController()


@contextmanager
def _quiet_on_one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from several threads, and on a busy machine lose a factor of ten by them."""
    with warnings.catch_warnings(), _threads().limit(limits=1):
        warnings.simplefilter("ignore")
        yield
