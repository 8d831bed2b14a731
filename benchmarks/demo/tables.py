"""The table of the demo, made from its committed rows."""

from __future__ import annotations

from benchmarks.rows import commits_of, equal_texts, read


def demo() -> str:
    """What `make demo` measures, from :mod:`benchmarks.demo.rows`."""
    rows = read("demo")
    if not rows:
        return "No rows yet: run `python -m benchmarks.demo.rows`."
    lines = [
        "| decoder | speed-up (passes) | ms a token | tokens a forward | drafts accepted | texts equal |",
        "| --- |" + " --- |" * 5,
    ]
    for row in rows:
        name = "transformers `generate`" if row["method"] == "transformers" else row["method"].replace("_", " ")
        low, high = row["spread"]["min"], row["spread"]["max"]
        passes = f" ({low:.2f} to {high:.2f})" if low < high else ""
        accepted = row["draft_acceptance_rate"]
        lines.append(
            f"| {name} | {row['value']:.2f}{passes} | {row['ms_per_token']:.1f} | {row['tokens_per_forward']:.2f} |"
            f" {'' if accepted is None else f'{accepted:.0%}'} | {equal_texts(row)} |"
        )
    first = rows[0]
    versions = first["versions"]
    lines += [
        "",
        f"{first['case']}, greedy, {first['runs']} passes; {first['device']}; torch {versions['torch']}, transformers"
        f" {versions['transformers']}; commit {commits_of(rows)}.",
    ]
    return "\n".join(lines)


TABLES = {"demo": demo}
"""The table of this folder by the name that pages give it."""
