"""The table of continued fits."""

from __future__ import annotations

from benchmarks.rows import read


def resume() -> str:
    """How many of the interrupted fits had the weights of an uninterrupted one after they were continued."""
    rows = read("resume")
    signals = sorted({row["method"] for row in rows})
    lines = [f"| module | {' | '.join(signals)} |", f"|---|{'---|' * len(signals)}"]
    for job in dict.fromkeys(row["case"] for row in rows):
        found = {row["method"]: row for row in rows if row["case"] == job}
        cells = []
        for signal in signals:
            row = found.get(signal)
            times = 0 if row is None else row["interruptions"]
            cells.append(f"{round(row['value'] * times)} of {times} equal" if row and times else "-")
        lines.append(f"| {job.replace('_', '-')} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"resume": resume}
