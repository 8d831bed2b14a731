"""The table of preparing text, made from its committed rows."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.rows import by_method, commits_of, read


def text_preparation() -> str:
    """Speed and memory of preparing text, from :mod:`benchmarks.text.preparation`."""
    rows = read("text_preparation")
    if not rows:
        return "No rows yet: run `python -m benchmarks.text.preparation`."
    lines = [
        "| text | way | MB/s (median, spread) | MB for each core second | peak memory, MB | without mapped files |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        for method, mine in by_method([row for row in rows if row["case"] == case]).items():
            speed = mine.get("megabytes_per_second")  # the largest size is for the memory, beside other work
            runs = f"{speed['value']:.2f}" if speed else ""
            if speed and speed["runs"] > 1:
                runs += f" ({speed['spread']['min']:.2f} to {speed['spread']['max']:.2f})"
            pace = f"{mine['megabytes_per_cpu_second']['value']:.2f}" if speed else ""
            memory = " | ".join(f"{mine[key]['value']:,.0f}" for key in ("peak_memory", "peak_own_memory"))
            lines.append(f"| {case.split(', ')[0]}, {case.split(', ')[1]} | {method} | {runs} | {pace} | {memory} |")
    first = rows[0]
    lines += ["", f"{first['device']}; tokenizers {first['versions']['tokenizers']}; commit {commits_of(rows)}."]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {"text_preparation": text_preparation}
"""The tables of this folder by the names that pages give them."""
