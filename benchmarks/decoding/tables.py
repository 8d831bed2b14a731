"""Tables of the decoding benchmarks, made from their committed rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import mean
from typing import Any

from benchmarks.rows import by_method, commits_of, each_case, equal_texts, read, runs_of, spread


def decode_cpu(sampled: bool) -> str:
    """Tables of :mod:`benchmarks.decoding.decode` on a processor: one for each sampled case, or for each greedy one."""
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
        equal = f" {equal_texts(row)} |" if greedy else ""
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
        return "No rows yet: run `python -m benchmarks.decoding.rows_gpu`."
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


def architectures() -> str:
    """Milliseconds a token of further model classes, from :mod:`benchmarks.decoding.architectures`."""
    rows = [row for row in read("architectures") if row["metric"] == "ms_per_token"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.architectures`."
    return each_case(rows, _architecture)


def _architecture(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    versions = first["versions"]
    return "\n".join(
        [
            "| method | ms a token (median, spread) | of the bound | equal to `generate` |",
            "| --- |" + " --- |" * 3,
            *(
                f"| {row['method']} | {spread(row)} | {row['bound'] / row['value']:.0%} | {equal_texts(row)} |"
                for row in rows
            ),
            "",
            f"{first['case']}; {first['device']}, torch {versions['torch']}, transformers {versions['transformers']};"
            f" commit {commits_of(rows)}; {runs_of(first)}. Reading what a token needs takes {first['bound']:.2f} ms.",
        ]
    )


def before_after() -> str:
    """Speed on a processor of two states of the code, from :mod:`benchmarks.decoding.before_after`."""
    rows = read("before_after")
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.before_after`."
    return each_case(rows, _before_after_case)


def _before_after_case(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| decoder | tokens/s before | tokens/s after | after over before | equal texts |",
        "| --- |" + " --- |" * 4,
    ]
    for name, found in by_method(rows).items():
        cells = (found["tokens_per_second_before"], found["tokens_per_second_after"], found["after_over_before"])
        lines.append(f"| {name} | " + " | ".join(map(spread, cells)) + f" | {equal_texts(cells[2])} |")
    first = rows[0]
    lines += ["", f"{first['case']}; {first['device']}, torch {first['versions']['torch']}; {runs_of(first)}."]
    return "\n".join(lines)


def coupling() -> str:
    """Acceptance of sampled drafts with both couplings, from :mod:`benchmarks.decoding.coupling`."""
    rows = read("coupling")
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.coupling`."
    return each_case(rows, _coupling_case)


def _coupling_case(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| decoder, draft length | accepted, shared noise | accepted, rejection | tokens a round, shared noise |"
        " tokens a round, rejection | texts equal to `Autoregressive` | distinct 4-grams |",
        "| --- |" + " --- |" * 6,
    ]
    found = by_method(rows)
    for name in dict.fromkeys(method.split(", ")[0] for method in found):
        both = [found[f"{name}, {kind}"] for kind in ("gumbel", "rejection")]
        cells = [
            spread(item[metric]) for metric in ("draft_acceptance_rate", "mean_acceptance_length") for item in both
        ]
        first = both[0]["draft_acceptance_rate"]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {equal_texts(first)} | {first['distinct_4']:.2f} |")
    first = rows[0]
    lines += ["", f"{first['case']}; {first['device']}; commit {commits_of(rows)}; median of {first['runs']} seeds."]
    return "\n".join(lines)


def speculation() -> str:
    """Speed-ups on real models and prompts by kind, from :mod:`benchmarks.decoding.speculation`."""
    rows = [row for row in read("speculation") if row["metric"] == "speedup"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.speculation`."
    heads = dict.fromkeys((row["case"].rsplit(", ", 3)[0], row["device"]) for row in rows)
    return "\n\n".join(
        _speculation_case([row for row in rows if (row["case"].rsplit(", ", 3)[0], row["device"]) == key])
        for key in heads
    )


def _speculation_case(rows: list[dict[str, Any]]) -> str:
    head, _, prompts, new = rows[0]["case"].rsplit(", ", 3)
    kinds = dict.fromkeys(row["case"].rsplit(", ", 3)[1] for row in rows)
    lines = [f"| decoder | {' | '.join(kinds)} | mean |", "| --- |" + " ---: |" * (len(kinds) + 1)]
    for name in dict.fromkeys(row["method"] for row in rows):
        found = {row["case"].rsplit(", ", 3)[1]: row for row in rows if row["method"] == name}
        cells = [f"{found[kind]['value']:.2f}" if kind in found else "" for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(row['value'] for row in found.values()):.2f} |")
    predicted = {row["method"] for row in rows if "predicted" in row}
    for name in sorted(predicted):
        found = {row["case"].rsplit(", ", 3)[1]: row["predicted"] for row in rows if row["method"] == name}
        cells = [f"{found[kind]:.2f}" if kind in found else "" for kind in kinds]
        lines.append(f"| {name}: E / (K c + v) | {' | '.join(cells)} | {mean(found.values()):.2f} |")
    plain = [
        row for row in read("speculation") if row["metric"] == "ms_per_token" and row["method"] == "Autoregressive"
    ]
    paces = [
        row["value"] for row in plain if row["case"].rsplit(", ", 3)[0] == head and row["device"] == rows[0]["device"]
    ]
    lines += [
        "",
        f"{head}; {prompts} of each kind, {new} tokens, greedy, EOS honoured; `Autoregressive` takes {min(paces):.2f}"
        f" to {max(paces):.2f} ms a token; {rows[0]['device']}, torch {rows[0]['versions']['torch']}, transformers"
        f" {rows[0]['versions']['transformers']}; commit {commits_of(rows)}; {runs_of(rows[0])}, with ranges in"
        " `benchmarks/results/speculation.jsonl`.",
    ]
    return "\n".join(lines)


def layer_skip() -> str:
    """The speed-up of self-speculation on a model trained for it, from :mod:`benchmarks.decoding.layer_skip`."""
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
        " Degenerate texts repeat themselves, so their rows support no claim of speed.",
    ]
    return "\n".join(lines)


def classes(benchmark: str = "classes") -> str:
    """Which decoder decodes which class of transformers exactly.

    Args:
        benchmark: ``classes`` for language models, ``vision_classes`` for images.
    """
    rows = sorted(read(benchmark), key=lambda row: row["case"])
    if not rows:
        return f"No rows yet: run `python -m benchmarks.decoding.{benchmark}`."
    names = list(rows[0]["outcomes"])
    lines = [
        f"| class | `model_type` | particular | {' | '.join(f'`{name}`' for name in names)} |",
        "| --- |" + " --- |" * (len(names) + 2),
    ]
    reasons: dict[str, int] = {}
    for row in rows:
        cells = []
        for name in names:
            found = row["outcomes"][name]
            if found == "equal":
                cells.append("equal")
                continue
            reason = found.replace(row["class"], "the model")
            cells.append(f"refused ({reasons.setdefault(reason, len(reasons) + 1)})")
        lines.append(f"| {row['class']} | {row['case']} | {row['kind']} | {' | '.join(cells)} |")
    equal = sum(all(value == "equal" for value in row["outcomes"].values()) for row in rows)
    many = {4: "four", 5: "five"}[len(names)]
    lines += ["", f"{len(rows)} classes, {equal} of them equal with all {many} decoders. What the refusals say:", ""]
    lines += [f"{number}. {re.sub('^the model', 'The model', reason)}" for reason, number in reasons.items()]
    versions = rows[0]["versions"]
    lines += ["", f"transformers {versions['transformers']}, torch {versions['torch']}; commit {commits_of(rows)}."]
    return "\n".join(lines)


def layer_skip_chat() -> str:
    """Self-speculation on pretrained chat models, from :mod:`benchmarks.decoding.layer_skip` with ``--chat``."""
    rows = [row for row in read("layer_skip_chat") if row["metric"] == "speedup"]
    if not rows:
        return "No rows yet: run `python -m benchmarks.decoding.layer_skip --chat`."
    lines = [
        "| model | draft | speed-up (median, spread) | the search said | E/(Kc+v) | E | K | c | v | distinct 4-grams |",
        "| --- |" + " --- |" * 9,
    ]
    for row in rows:
        label = row["case"].split(", ", 1)[1].split(", batch")[0]
        numbers = " | ".join(f"{row[key]:.2f}" if key in row else "" for key in ("predicted", *"EKcv"))
        said = f"{row['search_speedup']:.2f}" if "over_search" in row else ""
        lines.append(f"| {label} | {row['method']} | {spread(row)} | {said} | {numbers} | {row['distinct_4']:.2f} |")
    first = rows[0]
    lines += [
        "",
        f"bfloat16, greedy, EOS honoured, {first['case'].split('batch 1, ')[1]}; {first['device']}, torch"
        f" {first['versions']['torch']}; commit {commits_of(rows)}; {runs_of(first)}.",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "layer_skip_chat": layer_skip_chat,
    "decode_gpu": decode_gpu,
    "layer_skip": layer_skip,
    "architectures": architectures,
    "classes": classes,
    "vision_classes": lambda: classes("vision_classes"),
    "before_after": before_after,
    "speculation": speculation,
    "coupling": coupling,
    "decode_cpu": lambda: decode_cpu(sampled=True),
    "decode_cpu_greedy": lambda: decode_cpu(sampled=False),
}
"""The tables of this folder by the names that pages give them."""
