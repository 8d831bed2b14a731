"""Writes the tables of README and docs from the committed rows; ``--check`` only compares, for the tests."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import interval, read, spread

ROOT = Path(__file__).parent.parent
PAGES = tuple(ROOT / page for page in ("README.md", "docs/benchmarks.md", "docs/t2dr.md", "docs/trait.md"))


def runs_of(made: dict[str, Any]) -> str:
    """How many runs a row's value stands for, in words."""
    return "one run" if made["runs"] == 1 else f"median of {made['runs']} runs"


def commits_of(rows: list[dict[str, Any]]) -> str:
    """The commits that rows were measured at, each once; rows from a tree without git have none."""
    return ", ".join(dict.fromkeys((row["commit"] or "unknown")[:8] for row in rows))


def _each_case(rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]) -> str:
    """One table for each case on each device, in the order of the rows."""
    cases = dict.fromkeys((row["case"], row["device"]) for row in rows)
    return "\n\n".join(table([row for row in rows if (row["case"], row["device"]) == key]) for key in cases)


def _by_method(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by method, then by metric."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["method"], {})[row["metric"]] = row
    return found


def decode_cpu(sampled: bool) -> str:
    """A table of :mod:`benchmarks.decoding.decode` on a processor for each case that samples, or for each greedy one."""
    rows = [
        row
        for row in read("decode")
        if row["metric"] == "tokens_per_second"
        and (row["identical_rows"] is None) == sampled
        and not row["device"].startswith("NVIDIA")
    ]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.decode`."
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
        f"commit {commits_of([first])}; {runs_of(first)}. Distinct 4-grams {min(distinct):.2f} to "
        f"{max(distinct):.2f}, real text {first['distinct_4_real']:.2f}"
        + (": the text repeats itself, so its speed-ups support no claim." if degenerate else "."),
    ]
    return "\n".join(lines)


def decode_gpu() -> str:
    """Milliseconds a token of :mod:`benchmarks.decoding.decode` on a GPU beside what the memory allows."""
    rows = [
        row
        for row in read("decode")
        if row["metric"] in ("ms_per_token", "ms_per_step") and row["device"].startswith("NVIDIA")
    ]
    if not rows:
        return "No rows yet: run `benchmarks/decode_rows.sh`."
    lines = [
        "| model | method | ms a token or step (median, spread) | bound, ms | of the bound |",
        "| --- |" + " --- |" * 4,
    ]
    for row in rows:
        shape, batch, prompt = re.search(r"grown to (\S+), batch (\d+), prompt (\d+)", row["case"]).groups()  # type: ignore[union-attr]
        bound = row["bound"]
        share = "" if bound is None else f"{bound / row['value']:.0%}"
        lines.append(
            f"| {shape}, batch {batch}, prompt {prompt} | {row['method']} | {spread(row)} |"
            f" {'' if bound is None else f'{bound:.2f}'} | {share} |"
        )
    first = rows[0]
    speed = first["bytes_per_second"] / 1e12
    lines += [
        "",
        f"A small trained model grown to each shape, bfloat16; {first['device']}, torch {first['versions']['torch']},"
        f" transformers {first['versions']['transformers']}, triton {first['versions']['triton']}; commit"
        f" {commits_of(rows)}. The bound is the time to read weights, keys and values at the copy bandwidth measured"
        f" there, {speed:.1f} TB/s.",
    ]
    return "\n".join(lines)


def layer_skip() -> str:
    """What self-speculation gains on a model trained for it, from :mod:`benchmarks.decoding.layer_skip`."""
    rows = [row for row in read("layer_skip") if row["metric"] == "speedup" and "E" in row]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.layer_skip`."
    lines = [
        "| trained | temperature | draft | speed-up (median, spread) | E/(Kc+v) | E | K | c | v | distinct 4-grams |",
        "| --- |" + " --- |" * 9,
    ]
    for row in rows:
        layers, trained = re.search(r"(\d+ layers).*Python sources, (.*), batch", row["case"]).groups()  # type: ignore[union-attr]
        heat = row["case"].split("temperature ")[1] if "temperature" in row["case"] else "0"
        numbers = " | ".join(f"{row[key]:.2f}" for key in ("predicted", *"EKcv"))
        distinct = f"{row['distinct_4']:.2f}" + (", degenerate" if row["degenerate"] else "")
        draft = row["method"].removeprefix("SelfSpeculative, ")
        lines.append(f"| {layers}, {trained} | {heat} | {draft} | {spread(row)} | {numbers} | {distinct} |")
    first = rows[0]
    lines += [
        "",
        f"{'; '.join(dict.fromkeys(row['case'].split(', trained')[0] for row in rows))}; {first['device']}, torch"
        f" {first['versions']['torch']}; commit {commits_of(rows)}; real text has"
        f" {' and '.join(dict.fromkeys(format(row['distinct_4_real'], '.2f') for row in rows))} distinct 4-grams."
        " Degenerate rows support no claim of speed.",
    ]
    return "\n".join(lines)


def video_acceptance() -> str:
    """What pruning and relaxed rules do to acceptance, from :mod:`benchmarks.video.acceptance`."""
    rows = read("video_acceptance")
    if not rows:
        return "No rows yet: run `benchmarks/video_rows.sh`."
    return _each_case(rows, _acceptance_case)


def _acceptance_case(rows: list[dict[str, Any]]) -> str:
    pruned = [row for row in rows if row.get("prune_ratio")]
    ratios = sorted({row["prune_ratio"] for row in pruned})
    lines: list[str] = []
    if pruned:
        whole = next(row["value"] for row in rows if row.get("prune_ratio") == 0)
        lines = [
            "| selector | " + " | ".join(f"{share:.0%} pruned" for share in ratios) + " |",
            "| --- |" + " --- |" * len(ratios),
        ]
        for name in dict.fromkeys(row["method"].split(", ")[1] for row in pruned):
            mine = {row["prune_ratio"]: row for row in pruned if row["method"].split(", ")[1] == name}
            cells = (interval(mine[share], "of_reference") if share in mine else "" for share in ratios)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += [
            "",
            f"Without pruning {whole:.2f} drafts of a round are accepted; the table has the share that is left.",
        ]
    relaxed = [row for row in rows if "prune_ratio" not in row]
    if relaxed:
        lines += [
            *([""] if lines else []),
            "| rule | accepted a round | of strict (95 %) | not the target's own | facts right |"
            " of the target's (95 %) |",
            "| --- |" + " --- |" * 5,
        ]
        for row in relaxed:
            lines.append(
                f"| {row['method']} | {row['value']:.2f} | {interval(row, 'of_reference')} |"
                f" {row['relaxed_share']:.1%} | {row['slot_accuracy']:.1%} | {interval(row, 'retention')} |"
            )
    lines += ["", _video_origin(rows)]
    return "\n".join(lines)


def _video_origin(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    versions = first["versions"]
    distinct = [row["distinct_4"] for row in rows if "distinct_4" in row]
    said = "; degenerate rows support no claim" if any(row.get("degenerate") for row in rows) else ""
    return (
        f"{first['case']}; {first['device']}, torch {versions['torch']}, transformers {versions['transformers']};"
        f" commit {commits_of(rows)}. Distinct 4-grams {min(distinct):.2f} to {max(distinct):.2f}, the clips' own"
        f" captions {first['distinct_4_real']:.2f}{said}."
    )


def video_speed() -> str:
    """What SpecVLM and LVSpec gain at true size, from :mod:`benchmarks.video.speed`; a table for each case."""
    rows = read("video_speed")
    if not rows:
        return "No rows yet: run `benchmarks/video_rows.sh`."
    return _each_case(rows, _speed_case)


def _speed_case(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| way | decoding (spread) | (T+1)/R | T | R | whole call (spread) | ms a token | not the target's own |"
        " facts right | keys and values of the draft |",
        "| --- |" + " --- |" * 9,
    ]
    found = _by_method(rows)
    for name, mine in found.items():
        gain = mine["decode_speedup"]
        numbers = " | ".join(f"{gain[key]:.2f}" if key in gain else "" for key in ("predicted", "T", "R"))
        relaxed = f"{gain['relaxed_share']:.1%}" if gain.get("relaxed_share") else ""
        held = f"{gain['draft_kv_bytes'] / 2**20:,.0f} MiB" if "draft_kv_bytes" in gain else ""
        lines.append(
            f"| {name}{', degenerate' if gain['degenerate'] else ''} | {spread(gain)} | {numbers} |"
            f" {spread(mine['whole_speedup'])} | {mine['ms_per_token']['value']:.2f} | {relaxed} |"
            f" {gain['slot_accuracy']:.0%} | {held} |"
        )
    base = found["Autoregressive"]["ms_per_token"]
    share = next(mine["relevance_share"]["value"] for mine in found.values() if "relevance_share" in mine)
    lines += [
        "",
        f"{_video_origin(rows)} Times as fast as Autoregressive, {runs_of(base)}. The memory allows an"
        f" autoregressive token in {base['bound']:.2f} ms. Scoring relevance takes {share:.1%} of a round of LVSpec.",
    ]
    return "\n".join(lines)


def video_brief() -> str:
    """What decoding gains at the shapes of :mod:`benchmarks.video.speed`, a line for each shape, the fastest first.

    A way that was measured more than once at a shape stands there with its last measurement.
    """
    found = read("video_speed")
    if not found:
        return "No rows yet: run `benchmarks/video_rows.sh`."
    whole = {(row["case"], row["method"]): row["value"] for row in found if row["metric"] == "whole_speedup"}
    last: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(found, key=lambda row: row["date"]):
        if row["metric"] == "decode_speedup" and row["method"] != "Autoregressive":
            models = re.search(r"(\S+) with draft ([^,]+),.* (\d+) video", row["case"]).groups()  # type: ignore[union-attr]
            last.setdefault("{} with a {} draft, {}".format(*models), {})[row["method"]] = row
    names = dict.fromkeys(name for ways in last.values() for name in ways)
    lines = ["| models, video tokens | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for models, ways in sorted(last.items(), key=lambda one: -max(row["value"] for row in one[1].values())):
        cells = []
        for name in names:
            row = ways.get(name)
            cells.append("" if row is None else f"{row['value']:.2f} / {whole[row['case'], name]:.2f}")
            if row and row.get("relaxed_share"):
                cells[-1] += f", {row['relaxed_share']:.1%}"
        lines.append(f"| {models} | " + " | ".join(cells) + " |")
    shown = [row for ways in last.values() for row in ways.values()]
    first = max(shown, key=lambda row: row["date"])
    lines += [
        "",
        "Times as fast as Autoregressive on the same engine, decoding / whole call, and the share of tokens that are"
        f" not the target's own where there are any; bfloat16, batch 1; {first['device']}, torch"
        f" {first['versions']['torch']}, transformers {first['versions']['transformers']}; commit {commits_of(shown)}.",
    ]
    return "\n".join(lines)


def video_relevance() -> str:
    """How well LVSpec's relevance finds words about what is seen, from :mod:`benchmarks.video.relevance`."""
    rows = [row for row in read("video_relevance") if row["score_at"] == "judge"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.video.relevance`."
    lines = [
        "| layer | content over function words | facts over function words | facts over the rest |",
        "| --- |" + " --- |" * 3,
    ]
    for row in rows:
        cells = " | ".join(interval(row, name) for name in ("content", "facts", "facts_over_rest"))
        lines.append(f"| {row['layer']} | {cells} |")
    return "\n".join([*lines, "", _video_origin(rows)])


GROUPS = {"intra": "A", "inter": "B", "mixed": "C", "block": "D", "unbalanced": "E", "mean of A, B, C": "A to C"}
STUDIED = {
    "synthetic": "MAE on the embedded data (generator seed {generator_seed}, test split of 686 clips)",
    "digits": "accuracy on spoken and scanned digits (test split of 300)",
}


def t2dr_study(data: str = "synthetic", brief: bool = False) -> str:
    """The arms of :mod:`benchmarks.t2dr.study` on one kind of data; briefly, T2DR and the baselines only."""
    rows = [row for row in read("t2dr_study") if row["case"].startswith(f"{data}, ")]
    if not rows:
        return "No rows yet: run `python -m benchmarks.t2dr.study`."
    by_arm: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["method"], {})[row["case"].split(", 5 ")[0].removeprefix(f"{data}, ")] = row
    if brief:
        wanted = ("T2DR", "late fusion, zero fill", "cross-modal transformer", "TFR-Net-like", "LNLN-like")
        by_arm = {arm: by_arm[arm] for arm in wanted}
    lines = [
        "| arm | " + " | ".join(GROUPS.values()) + " | T2DR is better by (95 % interval) | on A | on B |",
        "| --- |" + " --- |" * (len(GROUPS) + 3),
    ]
    sign = -1 if rows[0]["metric"] == "mae" else 1  # of what is better
    for arm, found in sorted(by_arm.items(), key=lambda item: -sign * item[1]["mean of A, B, C"]["mean"]):
        means = " | ".join(f"{found[group]['mean']:.3f}" for group in GROUPS)
        gains = " | ".join(_gain(found[group], sign) for group in ("mean of A, B, C", "intra", "inter"))
        lines.append(f"| {arm} | {means} | {gains} |")
    first, shown = rows[0], [row for found in by_arm.values() for row in found.values()]
    what = STUDIED[data].format(**first)
    devices = "; ".join(dict.fromkeys(name for row in shown for name in row["device"].split("; ")))
    torches = ", ".join(dict.fromkeys(row["versions"]["torch"] for row in shown))
    lines += [
        "",
        f"{what}, mean of {first['runs']} training seeds by {first['mask_seeds']} mask seeds, width 32,"
        f" {first['epochs']} epochs; {devices}, torch {torches}; commit {commits_of(shown)}.",
    ]
    return "\n".join(lines)


def _gain(row: dict[str, Any], sign: int) -> str:
    """What T2DR is better by than an arm, with its interval; empty for T2DR itself."""
    if "t2dr_minus_this" not in row:
        return ""
    mean, *ends = (sign * value for value in row["t2dr_minus_this"])
    return f"{mean:.4f} ({min(ends):.4f} to {max(ends):.4f})"


def t2dr_cost() -> str:
    """Training speed and memory of T2DR and its baselines, from :mod:`benchmarks.t2dr.checks`."""
    rows = [row for row in read("t2dr_checks") if row["metric"] in ("training_samples_per_second", "peak_memory")]
    if not rows:
        return "No rows yet: run `python -m benchmarks.t2dr.checks`."
    found = _by_method(rows)
    lines = ["| model | samples/s (median, spread) | peak memory |", "| --- | --- | --- |"]
    for model, both in found.items():
        speed, memory = both["training_samples_per_second"], both["peak_memory"]
        spread = f"{speed['spread']['min']:.0f} to {speed['spread']['max']:.0f}"
        lines.append(f"| {model} | {speed['value']:.0f} ({spread}) | {memory['value']:.0f} |")
    first = rows[0]
    lines += [
        "",
        f"{first['case']}; {first['device']}, torch {first['versions']['torch']}; commit {commits_of([first])}.",
    ]
    return "\n".join(lines)


def trait_worlds() -> str:
    """What choosing chunks gains over chance in synthetic worlds, from :mod:`benchmarks.trait.worlds`."""
    rows = [row for row in read("trait_worlds") if row["metric"] == "true_gain"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.worlds`."
    lines = [
        "| sources | selection | true gain (mean; least to most) | over random | better than random |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        spread = f"{row['mean']:.3f} ({row['spread']['min']:.3f} to {row['spread']['max']:.3f})"
        ratio = row.get("ratio_to_random")
        better = "" if row["method"] == "random" else f"{row['wins']} of {row['runs']}"
        lines.append(
            f"| {row['case'].split()[0]} | {row['method']} | {spread} | {'' if ratio is None else f'{ratio:.2f}x'} |"
            f" {better} |"
        )
    first = rows[0]
    lines += ["", f"{first['device']}, {first['threads']} thread; commit {commits_of([first])}."]
    return "\n".join(lines)


def trait_study() -> str:
    """What each selection makes of judged collections, from :mod:`benchmarks.trait.study`."""
    rows = read("trait_study")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.study`."
    targets = list(dict.fromkeys(row["case"].split(",")[0] for row in rows))
    lines = [
        "| selection | " + " | ".join(targets) + " | Trait, both signals, is better by (95 %) |",
        "| --- |" + " --- |" * (len(targets) + 1),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["case"].split(",")[0]: row for row in rows if row["method"] == method}
        gain = mine["mean"].get("trait_minus_this")
        told = "" if gain is None else f"{gain[0]:+.4f} ({gain[1]:+.4f} to {gain[2]:+.4f})"
        lines.append(f"| {method} | " + " | ".join(f"{mine[name]['mean']:.3f}" for name in targets) + f" | {told} |")
    last = rows[-1]
    lines += [
        "",
        f"nDCG@10, {last['case'].split(', ', 1)[1]}; Trait evaluated {last['evaluated_share']:.0%} of the pairs;"
        f" {last['device']}; commit {commits_of([last])}.",
    ]
    return "\n".join(lines)


def trait_throughput() -> str:
    """How fast Trait trains, measures and chooses, from :mod:`benchmarks.trait.throughput`."""
    rows = read("trait_throughput")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.throughput`."
    lines = [
        "| model | trained pairs/s (median, spread) | measured pairs/s (median, spread) | time in the surrogate |",
        "| --- | --- | --- | --- |",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["metric"]: row for row in rows if row["method"] == method}
        speeds = " | ".join(
            f"{item['value']:,.0f} ({item['spread']['min']:,.0f} to {item['spread']['max']:,.0f})"
            for item in (mine["train_pairs_per_second"], mine["measured_pairs_per_second"])
        )
        choice = 1000 * mine["seconds_per_choice"]["value"]
        lines.append(f"| {method} | {speeds} | {mine['select_share']['value']:.1%}, {choice:.0f} ms a trial |")
    first = rows[0]
    lines += ["", f"{first['case']}; {first['device']}; commit {commits_of([first])}; {runs_of(first)}."]
    return "\n".join(lines)


def vector_search() -> str:
    """How fast an index is built and searched, from :mod:`benchmarks.trait.vector_search`; a table for each machine."""
    rows = read("vector_search")
    if not rows:
        return "No rows yet: run `python -m benchmarks.trait.vector_search`."
    return _each_case(rows, _search_case)


def _search_case(rows: list[dict[str, Any]]) -> str:
    found = _by_method(rows)
    lines = ["| search | queries/s (median, spread) | build, s | recall |", "| --- |" + " --- |" * 3]
    for name, mine in found.items():
        speed = mine["search"]
        told = f"{speed['value']:,.0f} ({speed['spread']['min']:,.0f} to {speed['spread']['max']:,.0f})"
        build = f"{mine['build']['value']:.1f}" if "build" in mine else ""
        recall = f"{mine['recall']['value']:.4f}" if "recall" in mine else ""
        lines.append(f"| {name} | {told} | {build} | {recall} |")
    first = rows[0]
    lines += [
        "",
        f"{first['case']}; {first['device']}, torch {first['versions']['torch']}, FAISS {first['faiss']}; commit"
        f" {commits_of(rows)}; {runs_of(first)}.",
    ]
    return "\n".join(lines)


TABLES = {
    "t2dr_cost": t2dr_cost,
    "decode_gpu": decode_gpu,
    "layer_skip": layer_skip,
    "video_acceptance": video_acceptance,
    "video_speed": video_speed,
    "video_brief": video_brief,
    "video_relevance": video_relevance,
    "trait_worlds": trait_worlds,
    "trait_study": trait_study,
    "trait_throughput": trait_throughput,
    "vector_search": vector_search,
    "decode_cpu": lambda: decode_cpu(sampled=True),
    "decode_cpu_greedy": lambda: decode_cpu(sampled=False),
    "t2dr_study": t2dr_study,
    "t2dr_digits": lambda: t2dr_study("digits"),
    "t2dr_brief": lambda: t2dr_study("digits", brief=True) + "\n\n" + t2dr_study(brief=True),
}


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
