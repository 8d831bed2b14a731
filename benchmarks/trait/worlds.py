"""Trait's search in synthetic worlds with known gains: expected improvement, random choice, the released formula.

A world has a hidden gain for each source, positive or negative. The n-th chunk of a source adds this gain times 0.7 to
the power of n - 1, and every measurement has noise of 0.004. The figure is the true gain of the best model found over
the base model. Nothing is trained, so it takes minutes. The script fails when the limits are not reached: with 28
sources, a higher gain than random choice in at least 12 of 16 worlds, and a mean ratio of at least 1.3. Run:

    OMP_NUM_THREADS=1 python -m benchmarks.trait.worlds
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.rows import positive, replace, row
from saccade.callbacks.trait.events import Best, Request
from saccade.callbacks.trait.search import search
from saccade.callbacks.trait.selectors import Candidate, Observation, RandomSelector, Selector, TraitSelector

NOISE, DECAY, CHUNKS = 0.004, 0.7, 20
GAIN_MEAN, GAIN_DEVIATION = 0.0, 0.01
SOURCES, TRIALS, SEEDS = (28, 8), 60, 16
LEAST_WINS, LEAST_RATIO = 12, 1.3
METHODS = ("GP + EI", "GP + released formula", "released surrogate and formula", "random")


class World:
    """A target with a known score for every state.

    Args:
        sources: Number of sources.
        seed: Seed of the hidden gains and of the noise.
    """

    def __init__(self, sources: int, seed: int) -> None:
        self.seed = seed
        self.gains = np.random.default_rng([seed, sources]).normal(GAIN_MEAN, GAIN_DEVIATION, sources)

    def truth(self, state: Sequence[int]) -> float:
        """True gain over the base model: diminishing returns within a source, additive over sources."""
        return float(self.gains @ ((1 - DECAY ** np.asarray(state, dtype=float)) / (1 - DECAY)))

    def measure(self, request: Request) -> float:
        """A noisy measurement; the same request always gets the same answer."""
        state = list(request.father_state)
        if request.source is not None:
            state[request.source] += 1
        chunk = 0 if request.chunk is None else request.chunk
        noise = np.random.default_rng([self.seed, request.node < 0, chunk, *state]).normal(0.0, NOISE)
        return 0.4 + self.truth(state) + float(noise)


@dataclass
class Timed(Selector):
    """Measures the time of a selector's choices.

    Args:
        selector: The measured selector.
    """

    selector: Selector
    seconds: list[float] = field(default_factory=list)

    def __call__(
        self, candidates: Sequence[Candidate], observations: Sequence[Observation], history: Sequence[int]
    ) -> int | None:
        """The selector's choice."""
        start = time.perf_counter()
        chosen = self.selector(candidates, observations, history)
        self.seconds.append(time.perf_counter() - start)
        return chosen


def play(case: tuple[str, int, int]) -> dict[str, Any]:
    """One search of a method in a world: true gain of its best model, optimism, backtracks and seconds per choice."""
    method, sources, seed = case
    rules: dict[str, Selector] = {
        "GP + EI": TraitSelector(seed=seed),
        "GP + released formula": TraitSelector(acquisition="ei_released", seed=seed),
        "released surrogate and formula": TraitSelector("released", "ei_released", seed=seed),
        "random": RandomSelector(seed),
    }
    world, select = World(sources, seed), Timed(rules[method])
    # the loop is the same for all methods, so only the choices differ
    events = list(search([CHUNKS] * sources, world.measure, select, TRIALS))
    best = [event for event in events if isinstance(event, Best)][-1]
    gain = world.truth(best.state)
    return {
        "method": method,
        "sources": sources,
        "seed": seed,
        "gain": gain,
        "optimism": best.score - 0.4 - gain,
        "backtracks": sum(event.kind == "backtrack" for event in events),
        "seconds": statistics.median(select.seconds),
    }


def main() -> None:
    """Plays every method in every world, prints a table, writes the rows and checks the limits."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=positive, default=SEEDS, help="worlds of each size")
    parser.add_argument("--workers", type=positive, default=1, help="processes")
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS, help="methods to play")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    arguments = parser.parse_args()
    cases = [(m, k, seed) for k in SOURCES for m in arguments.methods for seed in range(arguments.seeds)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.workers) as pool:
        found = list(track(pool.imap(play, cases), "worlds", total=len(cases)))
    table = Table("sources", "method", "true gain", "ratio", "wins", "optimism", "backtracks", "ms per choice")
    rows, failed = [], False
    for sources in SOURCES:
        plays = {m: [p for p in found if (p["method"], p["sources"]) == (m, sources)] for m in arguments.methods}
        random = [item["gain"] for item in plays.get("random", [])]
        for method, results in plays.items():
            gains = [item["gain"] for item in results]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            wins = sum(mine > other for mine, other in zip(gains, random, strict=False))
            ratio = statistics.mean(gains) / statistics.mean(random) if random else float("nan")
            optimism, backtracks, seconds = (
                [item[key] for item in results] for key in ("optimism", "backtracks", "seconds")
            )
            table.add_row(
                str(sources),
                method,
                f"{statistics.mean(gains):.4f} ± {error:.4f}",
                f"{ratio:.2f}",
                f"{wins}/{len(gains)}",
                f"{statistics.mean(optimism):.4f}",
                f"{statistics.mean(backtracks):.1f}",
                f"{1000 * statistics.median(seconds):.1f}",
            )
            case = f"{sources} sources of {CHUNKS} chunks, {TRIALS} trials, noise {NOISE}, corrected loop with warm-up"
            extra = {"mean": statistics.mean(gains), "ratio_to_random": ratio, "wins": wins}
            rows += [
                row("trait_worlds", case, method, "true_gain", gains, "score", seed=0, extra=extra),
                row("trait_worlds", case, method, "optimism", optimism, "score", seed=0),
                row("trait_worlds", case, method, "backtracks", backtracks, "count", seed=0),
                row("trait_worlds", case, method, "seconds_per_choice", seconds, "s", seed=0),
            ]
            if (method, sources) == ("GP + EI", SOURCES[0]) and random:
                failed = wins < LEAST_WINS * arguments.seeds / SEEDS or ratio < LEAST_RATIO
    Console(width=120).print(table)
    if not arguments.dry:
        replace(rows)
    if failed:
        sys.exit(f"GP + EI must win in at least {LEAST_WINS} of {SEEDS} worlds with a ratio of at least {LEAST_RATIO}.")


if __name__ == "__main__":
    main()
