"""Keeps the rows of a run of `make demo`, for the README.

After `make demo`: python -m benchmarks.demo.rows runs/compare/20260102-030405
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.rows import existing, replace
from demo.smollm2 import NAME, WEIGHTS

_ORIGIN = ("commit", "dirty", "date", "versions", "seed")


def rows_of(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a run's ``decoding.json`` as rows of a benchmark: one for each decoder, of all its prompts."""
    kept = []
    for row in (row for row in found if row["category"] is None):
        statistics, agreement, speedup = row["statistics"], row["agreement"] or {}, row["speedup"]
        low, high = row["speedup_range"] or (speedup, speedup)
        kept.append(
            {
                "benchmark": "demo",
                "case": f"{NAME} ({WEIGHTS}), {row['dtype']}, {row['prompts']} prompts,"
                f" up to {row['max_new_tokens']} new",
                "method": row["name"],
                "metric": "speedup",
                "value": speedup,
                "unit": "x",
                "spread": {"min": low, "median": speedup, "max": high},
                "runs": row["repeats"],
                "bound": None,
                "grown": False,
                "ms_per_token": row["ms_per_token"],
                "tokens_per_forward": statistics["tokens_per_target_forward"],
                "draft_acceptance_rate": statistics["draft_acceptance_rate"] if statistics["drafted"] else None,
                "identical_rows": agreement.get("identical_rows"),
                "near_tie_rows": agreement.get("near_tie_rows"),
                "rows": statistics["requests"],
                "distinct_4": row["quality"]["distinct_4"],
                "distinct_4_real": row["quality"]["distinct_4_real"],
                "degenerate": row["quality"]["degenerate"],
                "device": ", ".join(row["device"]),
                **{name: row[name] for name in _ORIGIN if name in row},
            }
        )
    return kept


def main() -> None:
    """Replace the committed rows of the same case on the same device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=existing, help="run folder of `saccade compare`")
    folder = Path(parser.parse_args().run)
    replace(rows_of(json.loads((folder / "decoding.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
