"""Propose the next skip set: Bayesian optimisation over pools of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from skopt.acquisition import gaussian_ei
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern

from saccade.callbacks.gaussian_process import fit_process, single_thread
from saccade.inference.drafting.skip_sets import SPREAD_SHARES, spread_skip_set

Bits = tuple[int, ...]

_FIRST_RANDOM = 12
_LOWEST_RATIO, _HIGHEST_RATIO = 0.1, 0.7
_RANDOM_POOL, _FLIP_POOL = 200, 400
_INCUMBENTS = 8
_MOST_OBSERVATIONS = 256


def propose(trials: Sequence[tuple[Bits, float]], switches: int, seed: int) -> Bits:
    """Propose the next skip set.

    A Gaussian process (scikit-optimize) over the switches predicts the logarithm of the objective; the candidate with
    the largest expected improvement is proposed. The candidates are random subsets with a range of skip ratios, and the
    best sets so far with one to four switches flipped or two swapped. Uniform samples of the 2 to the power of 2L sets
    would all skip about half of the sub-layers, and hardly any would be close to a good set.

    On a trained model of 12 layers with the costs of a memory-bound forward (100 sets, mean of three seeds), the best
    set was estimated 1.32 times as fast as autoregressive decoding; with random subsets alone 1.19 times, with flips of
    the best sets and no process 1.22 times.

    The proposal depends on the arguments alone, so that a resumed search continues as if it had not stopped.

    Args:
        trials: Skip sets tried so far with their objective (above 0, lower is better), in order.
        switches: Number of switches, twice the number of layers.
        seed: Seed of all random choices.

    Returns:
        A skip set that has not been tried, as long as one is found.
    """
    rng = np.random.default_rng([seed, len(trials)])
    tried = {bits for bits, _ in trials}
    for first in _first_sets(switches):
        if first not in tried:
            return first
    if len(trials) < _FIRST_RANDOM:
        pool = [candidate for candidate in _random_sets(switches, 50, rng) if candidate not in tried]
        return pool[0] if pool else _random_sets(switches, 1, rng)[0]
    pool = [candidate for candidate in _pool(trials, switches, rng) if candidate not in tried]
    if not pool:  # a small model: all candidates have been tried
        return _random_sets(switches, 1, rng)[0]
    improvement = _expected_improvement(trials, pool, switches, seed)
    return pool[int(np.argmax(improvement))]


def _first_sets(switches: int) -> list[Bits]:
    """The first sets: nothing skipped, and the even spreads of which ``skip="auto"`` chooses one."""
    layers = switches // 2
    spreads = [spread_skip_set(layers, share) for share in SPREAD_SHARES]
    return [
        (0,) * switches,
        *(
            tuple(int(layer in spread[kind]) for kind in ("attention", "mlp") for layer in range(layers))
            for spread in spreads
        ),
    ]


def _random_sets(switches: int, count: int, rng: np.random.Generator) -> list[Bits]:
    ratios = rng.uniform(_LOWEST_RATIO, _HIGHEST_RATIO, (count, 1))
    return [tuple(int(bit) for bit in row) for row in rng.random((count, switches)) < ratios]


def _pool(trials: Sequence[tuple[Bits, float]], switches: int, rng: np.random.Generator) -> list[Bits]:
    pool = dict.fromkeys(_random_sets(switches, _RANDOM_POOL, rng))
    best = [bits for bits, _ in sorted(trials, key=lambda trial: trial[1])[:_INCUMBENTS]]
    for _ in range(_FLIP_POOL):
        bits = list(best[rng.integers(len(best))])
        if rng.random() < 0.25 and 0 < sum(bits) < switches:
            skipped = [place for place, bit in enumerate(bits) if bit]
            kept = [place for place, bit in enumerate(bits) if not bit]
            flips = [skipped[rng.integers(len(skipped))], kept[rng.integers(len(kept))]]
        else:
            flips = rng.choice(switches, size=min(int(rng.integers(1, 5)), switches), replace=False).tolist()
        for place in flips:
            bits[place] = 1 - bits[place]
        pool[tuple(bits)] = None
    return list(pool)


def _expected_improvement(
    trials: Sequence[tuple[Bits, float]], pool: Sequence[Bits], switches: int, seed: int
) -> np.ndarray:
    known = list(trials)
    if len(known) > _MOST_OBSERVATIONS:  # the cost of a fit is cubic: keep the best and the latest
        half = _MOST_OBSERVATIONS // 2
        best = sorted(known, key=lambda trial: trial[1])[:half]
        known = list(dict.fromkeys(best + known[-half:]))
    # one length scale for all switches: sets are similar if they differ in few of them, whichever these are
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
        length_scale=math.sqrt(switches) / 2, length_scale_bounds=(0.5, 10 * math.sqrt(switches)), nu=2.5
    )
    points = np.array([bits for bits, _ in known], dtype=float)
    objectives = np.log([objective for _, objective in known])
    process = fit_process(kernel, points, objectives, seed=seed)
    with single_thread():
        improvement: np.ndarray = gaussian_ei(np.array(pool, dtype=float), process, y_opt=objectives.min())
    return improvement
