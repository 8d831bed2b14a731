"""Writes the README's tables from the committed rows; ``--check`` only compares, for continuous integration."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import read

README = Path(__file__).parent.parent / "README.md"


def decode_cpu() -> str:
    """The tables of :mod:`benchmarks.decode_cpu`, one for each case."""
    rows = read("decode_cpu")
    if not rows:
        return "No rows yet: run `python -m benchmarks.decode_cpu`."
    cases = dict.fromkeys(row["case"] for row in rows)
    return "\n\n".join(_decoding_case([row for row in rows if row["case"] == case]) for case in cases)


def _decoding_case(rows: list[dict[str, Any]]) -> str:
    base = next(row["value"] for row in rows if row["method"] == "transformers generate")
    lines = [
        "| method | tokens/s (median, spread) | against `generate` | target forwards per token | equal to `generate` |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{row['value']:.0f} ({row['spread']['min']:.0f} to {row['spread']['max']:.0f})"
        forwards = row.get("target_forwards_per_token")
        equal = "" if row["identical_rows"] is None else f"{row['identical_rows']} of {row['rows']}"
        lines.append(
            f"| {row['method']} | {spread} | {row['value'] / base:.2f}x | "
            f"{'' if forwards is None else f'{forwards:.2f}'} | {equal} |"
        )
    first = rows[0]
    versions = first["versions"]
    distinct = [row["distinct_4"] for row in rows]
    degenerate = any(row["degenerate"] for row in rows)
    lines += [
        "",
        f"{first['case']}; {first['device']}; torch {versions['torch']}, transformers {versions['transformers']}; "
        f"commit {first['commit'][:8]}; median of {first['runs']} runs. Distinct 4-grams {min(distinct):.2f} to "
        f"{max(distinct):.2f}, real text {first['distinct_4_real']:.2f}"
        + (": the text repeats itself, so its speed-ups support no claim." if degenerate else "."),
    ]
    return "\n".join(lines)


TABLES = {"decode_cpu": decode_cpu}


def render(text: str) -> str:
    """The README with every block between ``<!-- table NAME -->`` and ``<!-- end -->`` written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Writes, or with ``--check`` compares and returns 1 when the README is stale."""
    old = README.read_text()
    new = render(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            sys.stderr.write("the README's tables differ from benchmarks/results: run 'make tables'\n")
        return int(old != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
