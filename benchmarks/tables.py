"""Writes the tables of README and docs from the committed rows; ``--check`` only compares, for the tests."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.rows import read

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "benchmarks.md")


def decode_cpu(sampled: bool) -> str:
    """A table of :mod:`benchmarks.decode_cpu` for each of its cases that sample, or for each greedy one."""
    rows = [row for row in read("decode_cpu") if (row["identical_rows"] is None) == sampled]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decode_cpu`."
    cases = dict.fromkeys(row["case"] for row in rows)
    return "\n\n".join(_decoding_case([row for row in rows if row["case"] == case]) for case in cases)


def _decoding_case(rows: list[dict[str, Any]]) -> str:
    base = next(row["value"] for row in rows if row["method"] == "transformers generate")
    greedy = rows[0]["identical_rows"] is not None
    lines = [
        "| method | tokens/s (median, spread) | against `generate` | target forwards per token |"
        + (" equal to `generate` |" if greedy else ""),
        "| --- | --- | --- | --- |" + (" --- |" if greedy else ""),
    ]
    for row in rows:
        spread = f"{row['value']:.0f} ({row['spread']['min']:.0f} to {row['spread']['max']:.0f})"
        forwards = row.get("target_forwards_per_token")
        equal = f" {row['identical_rows']} of {row['rows']} |" if greedy else ""
        lines.append(
            f"| {row['method']} | {spread} | {row['value'] / base:.2f}x | "
            f"{'' if forwards is None else f'{forwards:.2f}'} |{equal}"
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


TABLES = {"decode_cpu": lambda: decode_cpu(sampled=True), "decode_cpu_greedy": lambda: decode_cpu(sampled=False)}


def render(text: str) -> str:
    """A page with every block between ``<!-- table NAME -->`` and ``<!-- end -->`` written anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Writes, or with ``--check`` compares and returns 1 when a page is stale."""
    stale = 0
    for page in PAGES:
        old = page.read_text()
        new = render(old)
        if "--check" not in sys.argv[1:]:
            page.write_text(new)
        elif old != new:
            sys.stderr.write(f"the tables of {page.name} differ from benchmarks/results: run 'make tables'\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
