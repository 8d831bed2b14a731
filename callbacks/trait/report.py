"""Report of a selection as Markdown: scores, sources and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saccade.callbacks.trait.events import Best, Event, Trial, Warmup


def markdown(events: Sequence[Event], names: Sequence[str], found: Mapping[str, Any]) -> str:
    """Write tables of scores and sources, and a line of costs.

    Args:
        events: Events of the search.
        names: Names of the sources.
        found: The content of `trait.json`.
    """
    lines = [
        f"# {found['selection']} on {found['target']}, signal {found['signal']}",
        "",
        "| queries | BM25 | base | best | best minus base (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, key in (("dev", "dev"), ("held-out", "held_out")):
        scores = found[key]
        if scores is not None:
            gain, low, high = scores["best_minus_base"]
            lines.append(
                f"| {name} ({scores['queries']}) | {scores['bm25']:.4f} | {scores['base']:.4f} | {scores['best']:.4f}"
                f" | {gain:+.4f} ({low:+.4f} to {high:+.4f}) |"
            )
    base = next((event.score for event in events if isinstance(event, Best)), 0.0)
    warm = {event.source: event.score for event in events if isinstance(event, Warmup)}
    lines += ["", "| source | gain of one chunk over base | tried | accepted |", "| --- | --- | --- | --- |"]
    for place, name in enumerate(names):
        trials = [event for event in events if isinstance(event, Trial) and event.source == place]
        alone = (
            f"{warm[place] - base:+.4f}" + (" (negative transfer)" if warm[place] < base else "")
            if place in warm
            else ""
        )
        lines.append(f"| {name} | {alone} | {len(trials)} | {sum(trial.accepted for trial in trials)} |")
    ended = f" (ended before the budget: {found['ended']})" if found["ended"] else ""
    path = ", ".join(f"{item['source']} {item['chunk']}" for item in found["chosen"]) or "none: the base model is best"
    lines += [
        "",
        f"Chosen chunks, in order: {path}.",
        "",
        f"{found['trials']} trials{ended}; {found['costs']}; {found['select_share']:.1%} of the time in the surrogate."
        " The dev scores are optimistic, because the selection used them; the held-out queries were not used before.",
    ]
    return "\n".join(lines) + "\n"
