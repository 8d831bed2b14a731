"""Figure of a selection: scores, the tree of trials, sources, and final scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saccade.callbacks.trait.events import Backtrack, Best, Event, Prune, Trial, Warmup

_TAKEN, _LEFT, _WARM = "#4477aa", "#bbbbbb", "#ccbb44"


def figure(events: Sequence[Event], names: Sequence[str], found: Mapping[str, Any]) -> Figure:
    """Draw four panels: scores over trials, the tree of trials, chunks of each source, and dev and held-out scores.

    Args:
        events: Events of the search.
        names: Names of the sources.
        found: The content of `trait.json`.
    """
    drawing = Figure(figsize=(12, 8), layout="constrained")
    axes = drawing.subplots(2, 2)
    _scores(axes[0, 0], events)
    _tree(axes[0, 1], events, names)
    _shares(axes[1, 0], events, names)
    _final_scores(axes[1, 1], found)
    drawing.suptitle(f"{found['selection']} on {found['target']}, signal {found['signal']}")
    return drawing


def _scores(axes: Axes, events: Sequence[Event]) -> None:
    trials = [event for event in events if isinstance(event, Trial)]
    for accepted, colour, label in ((True, _TAKEN, "accepted"), (False, _LEFT, "rejected")):
        part = [trial for trial in trials if trial.accepted == accepted]
        axes.scatter([trial.node for trial in part], [trial.score for trial in part], color=colour, label=label, s=22)
    best, steps, levels = 0.0, [], []
    number = 0
    for event in events:
        if isinstance(event, Trial):
            number = event.node
        if isinstance(event, Best):
            best = event.score
            steps.append(number)
            levels.append(best)
    axes.step([*steps, number], [*levels, best], where="post", color="black", linewidth=1, label="best so far")
    axes.set(xlabel="trial", ylabel="dev nDCG@10", title="Scores")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _tree(axes: Axes, events: Sequence[Event], names: Sequence[str]) -> None:
    depth = {0: 0}
    axes.scatter([0], [0], color="black", s=30, zorder=3)
    for event in events:
        if isinstance(event, Trial):
            depth[event.node] = depth[event.parent] + 1
            colour = _TAKEN if event.accepted else _LEFT
            axes.plot([event.parent, event.node], [depth[event.parent], depth[event.node]], color=colour, linewidth=0.8)
            axes.scatter([event.node], [depth[event.node]], color=colour, s=30, zorder=3)
            axes.annotate(names[event.source], (event.node, depth[event.node]), (3, 3), textcoords="offset points",
                          fontsize=6, rotation=30)  # fmt: skip
    last = max(depth)
    for event in events:
        if isinstance(event, Backtrack):
            axes.scatter([event.node], [depth[event.node]], marker="x", color="#cc3311", s=60, zorder=4)
    pruned = [names[source] for event in events if isinstance(event, Prune) for source in event.sources]
    title = "Tree of trials; red crosses: exhausted" + (
        f"; pruned: {', '.join(dict.fromkeys(pruned))}" if pruned else ""
    )
    axes.set(xlabel="trial", ylabel="accepted chunks", title=title, xlim=(-0.5, last + 1.5))
    axes.title.set_fontsize(9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)  # room for the names
    axes.grid(alpha=0.3)


def _shares(axes: Axes, events: Sequence[Event], names: Sequence[str]) -> None:
    trials = [event for event in events if isinstance(event, Trial)]
    places = range(len(names))
    bottom = [0] * len(names)
    for label, colour, counts in (
        ("accepted", _TAKEN, [sum(trial.accepted and trial.source == place for trial in trials) for place in places]),
        (
            "rejected",
            _LEFT,
            [sum(not trial.accepted and trial.source == place for trial in trials) for place in places],
        ),
        ("warm-up", _WARM, [sum(isinstance(e, Warmup) and e.source == place for e in events) for place in places]),
    ):
        axes.barh(places, counts, left=bottom, color=colour, label=label)
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    axes.set_yticks(places, names)
    axes.set(xlabel="chunks evaluated", title="Sources")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def _final_scores(axes: Axes, found: Mapping[str, Any]) -> None:
    groups = [(name, found[key]) for name, key in (("dev", "dev"), ("held-out", "held_out")) if found[key] is not None]
    for place, (_, scores) in enumerate(groups):
        for shift, (method, colour) in enumerate((("bm25", _LEFT), ("base", _WARM), ("best", _TAKEN))):
            at = place + (shift - 1) * 0.25
            axes.bar(at, scores[method], 0.23, color=colour, label=method if place == 0 else None)
            axes.annotate(f"{scores[method]:.3f}", (at, scores[method]), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), [f"{name} ({scores['queries']} queries)" for name, scores in groups])
    axes.margins(y=0.25)  # room for the legend
    axes.set(ylabel="nDCG@10", title=f"{found['evaluated_share']:.1%} of the pool's pairs evaluated")
    axes.legend(fontsize=8)
