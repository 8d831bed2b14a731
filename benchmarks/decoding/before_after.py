"""Speed of decoders on a processor, in this tree and in a checkout of an older commit, side by side.

    git worktree add ../old COMMIT
    python -m benchmarks.decoding.before_after ../old RUN/model

Both trees continue the same held-out prompts greedily. They take turns: each run is a process for the older tree and
one for this tree, which decodes all prompts once to warm up and once to measure. Texts are compared too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoConfig

from benchmarks.decoding.decode import SEED, held_out_prompts
from benchmarks.rows import by_method, existing, positive, replace, row, spread

ROOT = Path(__file__).parents[2]
DECODERS = ("Autoregressive", "PromptLookup", "SelfSpeculative")


def decoded(tree: Path, place: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What the decoders of a tree do, in a process of their own.

    Args:
        tree: A checkout.
        place: An empty folder, or the one of an earlier call for this tree; it takes a package that leads to the tree.
        asked: Input of :mod:`benchmarks.decoding.one_tree`.

    Returns:
        ``tokens`` and ``tokens_per_second`` by decoder.

    Raises:
        SystemExit: The process failed, or has imported another tree.
    """
    package = place / "saccade"
    if not package.exists():
        package.mkdir(parents=True)
        for folder in (one for one in tree.iterdir() if one.is_dir() and not one.name.startswith(".")):
            (package / folder.name).symlink_to(folder.resolve())
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("one_tree.py"))],
        input=json.dumps(asked), env=os.environ | {"PYTHONPATH": str(place)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise SystemExit(f"Decoding with {tree} failed ({last}): see that it is a checkout of this project.")
    answer = json.loads(done.stdout.splitlines()[-1])
    if Path(answer["package"]) != (tree / "inference").resolve():
        raise SystemExit(f"Decoding with {tree} imported {answer['package']}: see that it has a folder inference.")
    found: dict[str, Any] = answer["decoders"]
    return found


def commit_of(tree: Path) -> str:
    """The commit of a checkout, with a mark where files differ from it."""
    asked = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def rows_of(case: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Three rows for each decoder: tokens a second of both trees, and the later one's over the earlier one's."""
    made = []
    for name in before[0]:
        texts = [run[name]["tokens"] for run in (before[-1], after[-1])]
        equal = sum(a == b for a, b in zip(*texts, strict=True))
        extra = {"identical_rows": equal, "rows": len(texts[0])}
        speeds = [[run[name]["tokens_per_second"] for run in runs] for runs in (before, after)]
        for metric, values, unit in (
            ("tokens_per_second_before", speeds[0], "tokens/s"),
            ("tokens_per_second_after", speeds[1], "tokens/s"),
            ("after_over_before", [b / a for a, b in zip(*speeds, strict=True)], "times"),
        ):
            made.append(row("before_after", case, name, metric, values, unit, seed=SEED, extra=extra))
    return made


def main() -> None:
    """Measures, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=existing, metavar="OLD_TREE", help="folder of a checkout of an older commit")
    parser.add_argument("model", type=existing, metavar="MODEL", help="folder of a trained model, with its tokenizer")
    parser.add_argument("--prompts", type=positive, default=6)
    parser.add_argument("--prompt-length", type=positive, default=64)
    parser.add_argument("--new-tokens", type=positive, default=96)
    parser.add_argument("--runs", type=positive, default=5, help="processes for each tree")
    parser.add_argument("--threads", type=positive, default=1)
    chosen = parser.parse_args()
    texts, _ = held_out_prompts(chosen.model, chosen.prompts, chosen.prompt_length, chosen.new_tokens)
    asked = {
        "model": str(Path(chosen.model).resolve()), "prompts": [ids[0].tolist() for ids in texts],
        "new_tokens": chosen.new_tokens, "decoders": DECODERS, "threads": chosen.threads,
    }  # fmt: skip
    trees = {"before": Path(chosen.old), "after": ROOT}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        for _ in track(range(chosen.runs), description="runs"):
            for name, tree in trees.items():
                runs[name].append(decoded(tree, Path(folder) / name, asked))
    config = AutoConfig.from_pretrained(chosen.model)
    case = (
        f"{config.model_type} {config.num_hidden_layers} layers float32, greedy, batch 1, prompt "
        f"{chosen.prompt_length}, {chosen.new_tokens} new tokens, {chosen.prompts} held-out prompts, "
        f"{chosen.threads} thread(s), commit {commit_of(trees['after'])} after {commit_of(trees['before'])}"
    )
    made = rows_of(case, runs["before"], runs["after"])
    replace(made)
    table = Table("decoder", "tokens/s before", "tokens/s after", "after over before", "equal texts", title=case)
    for name, found in by_method(made).items():
        ratio = found["after_over_before"]
        table.add_row(name, *map(spread, found.values()), f"{ratio['identical_rows']}/{ratio['rows']}")
    Console(width=150).print(table)
    brief = {name: round(found["after_over_before"]["value"], 4) for name, found in by_method(made).items()}
    Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, **brief}), markup=False)


if __name__ == "__main__":
    main()
