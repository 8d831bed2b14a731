"""Fit Gaussian processes of scikit-optimize: used by the layer search and by Trait."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import Kernel
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

# added to the diagonal, and raised when a Cholesky decomposition fails
_JITTER, _LARGEST_JITTER = 1e-10, 1e-4


def fit_process(
    kernel: Kernel, points: np.ndarray, values: np.ndarray, *, restarts: int = 0, seed: int = 0, noise: bool = True
) -> GaussianProcessRegressor:
    """Fit a Gaussian process. Equal arguments give an equal process.

    Args:
        kernel: Kernel with the bounds of its hyper-parameters.
        points: Inputs [N, D].
        values: Observed values [N].
        restarts: Further random starts of the hyper-parameter optimisation.
        seed: Seed of the restarts.
        noise: Normalise the values to mean 0 and variance 1, and leave a white-noise term of the kernel out of the
            predicted standard deviation. scikit-optimize adds such a term if the kernel has none.

    Returns:
        The fitted process.

    Raises:
        numpy.linalg.LinAlgError: The covariance matrix is singular even with a jitter of 1e-4 on its diagonal.
    """
    jitter = _JITTER
    with single_thread():
        while True:
            process = GaussianProcessRegressor(
                kernel,
                alpha=jitter,
                n_restarts_optimizer=restarts,
                normalize_y=noise,
                noise="gaussian" if noise else None,
                random_state=seed,
            )
            try:
                return process.fit(points, values)
            except np.linalg.LinAlgError:
                jitter *= 100
                if jitter > _LARGEST_JITTER:
                    raise


@contextmanager
def single_thread() -> Iterator[None]:
    """Run linear algebra on one thread and hide warnings, for example about a length scale at its bound.

    Several threads do not speed up matrices this small, and on a busy machine they make them ten times slower.
    """
    with warnings.catch_warnings(), _threads().limit(limits=1):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _threads() -> ThreadpoolController:
    """The loaded linear-algebra libraries; finding them takes 4 ms."""
    return ThreadpoolController()
