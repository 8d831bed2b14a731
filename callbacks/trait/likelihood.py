"""How likely a Gaussian process of Trait's surrogate makes what was observed, as fast as a small one can be had."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri  # type: ignore[import-untyped]
from scipy.optimize import minimize  # type: ignore[import-untyped]

# of the log-likelihood, relative; scipy's default follows it to the ninth digit, at a fifth more evaluations
_TOLERANCE = 1e-6
_JITTER = 1e-10  # scikit-learn's


class Likelihood:
    """Negative log-likelihood of an amplitude, a length scale and a noise, with its gradient.

    The process is ``amplitude * exp(-d^2 / (2 length^2)) + noise`` on the diagonal, d the distance of two states. The
    formula and the optimizer are those of scikit-learn's regressor (Rasmussen and Williams, 2006, algorithm 2.1 and
    equation 5.9), and so is what they find; but its kernel objects take 35 ms to fit 40 observations, and with
    this it is 6. Distances are computed once, and the inverse comes from the factor in place.

    Args:
        points: States [N, K].
        values: Scores [N]; they are normalised to mean 0 and variance 1.
        jitter: Added to the diagonal.
    """

    def __init__(self, points: np.ndarray, values: np.ndarray, jitter: float = _JITTER) -> None:
        # to the letter as scikit-learn does it, for the process is then fitted to its values
        self.values = (values - values.mean()) / (float(values.std()) or 1.0)
        squares = (points**2).sum(1)
        # counts are whole numbers, so this has no rounding to be afraid of
        self.distances = np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0.0)
        self.jitter = jitter

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log-likelihood in nats, and its gradient.

        Args:
            theta: Natural logarithms of amplitude, length scale and noise, [3].

        Returns:
            The value, infinite where the matrix is not positive definite, and the gradient [3].
        """
        amplitude, length, noise = (math.exp(value) for value in theta)
        count = len(self.values)
        signal = amplitude * np.exp(self.distances * (-0.5 / length**2))
        matrix = signal.copy()
        matrix.flat[:: count + 1] += noise + self.jitter
        factor, failed = dpotrf(matrix, lower=1, overwrite_a=1)
        if failed:
            return math.inf, np.zeros(3)
        logarithm = float(np.log(factor.diagonal()).sum())
        inverse, _ = dpotri(factor, lower=1, overwrite_c=1)  # its lower half; the factor has zeros above it
        inverse += inverse.T
        inverse.flat[:: count + 1] /= 2
        weights = inverse @ self.values
        # 0.5 * trace((w w^T - K^-1) dK), for the two that change every entry and the one on the diagonal
        inner = np.outer(weights, weights)
        inner -= inverse
        inner_signal = inner * signal
        gradient = (
            inner_signal.sum(),
            np.vdot(inner_signal, self.distances) / length**2,
            noise * inner.trace(),
        )
        value = 0.5 * float(self.values @ weights) + logarithm + 0.5 * count * math.log(2 * math.pi)
        return value, -0.5 * np.array(gradient)

    def optimizer(
        self, objective: Callable[..., Any], initial: np.ndarray, bounds: Sequence[Sequence[float]]
    ) -> tuple[np.ndarray, float]:
        """L-BFGS-B from one start, in the form in which scikit-learn asks for it.

        Args:
            objective: scikit-learn's own objective: the same, but slower, and not asked.
            initial: Where to start, [3].
            bounds: Least and largest of each, [3, 2].

        Returns:
            The best logarithms [3] and the value there.
        """
        found = minimize(self, initial, method="L-BFGS-B", jac=True, bounds=bounds, options={"ftol": _TOLERANCE})
        return found.x, float(found.fun)
