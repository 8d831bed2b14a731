"""Rows and tables of a missing-data evaluation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from saccade.callbacks.missing_data import figures as missing_data_figures
from saccade.callbacks.missing_data.totals import Summary, is_curve
from saccade.common.files import replacing, write_json, write_text
from saccade.common.progress import console
from saccade.common.provenance import provenance
from saccade.common.records import plain
from saccade.datamodules.multimodal.batch import MODALITIES

Row = Mapping[str, Any]

# headings of the usual tables, and the metrics below each: N0 leaves neutral samples out, H0 counts them as positive
_COLUMNS = (
    ("Acc-7", ("acc_7",)),
    ("Acc-5", ("acc_5",)),
    ("Acc-3", ("acc_3",)),
    ("Acc-2 (N0/H0)", ("acc_2_non0", "acc_2_has0")),
    ("Acc-2", ("acc_2",)),
    ("Acc", ("accuracy",)),
    ("F1 (N0/H0)", ("f1_non0", "f1_has0")),
    ("F1", ("f1",)),
    ("MAE", ("mae",)),
    ("Corr", ("corr",)),
)
_HURTS = 0.01  # relative margin by which all modalities must be worse than a single one to be noted


def rows(conditions: Sequence[Summary], groups: Sequence[Summary], context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make one self-contained record for each condition, then one for each group.

    Args:
        conditions: One summary for each condition.
        groups: Means over the conditions of each group.
        context: Entries that all rows share: model, data, protocol, checkpoint.

    Returns:
        The rows of ``missing.json``. NaN becomes None.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")  # set by Lightning's seed_everything
    shared = {**context, **provenance(None if seed is None else int(seed))}
    return [_row("condition", item) | shared for item in conditions] + [_row("group", item) | shared for item in groups]


def _row(kind: str, summary: Summary) -> dict[str, Any]:
    alone = summary.members[0] if kind == "condition" else None
    return {
        "kind": kind,
        "name": summary.name,
        "group": summary.group,
        "x": None if alone is None else alone.x,
        "condition": None if alone is None else plain(alone),
        "conditions": [member.name for member in summary.members],
        "curve": is_curve(summary.members),
        "metrics": summary.spread("metrics"),
        "weights": summary.spread("weights") or None,
        "observed": summary.spread("observed"),
        "per_seed": summary.numbers["metrics"],
    }


def write(records: Sequence[Row], folder: Path) -> None:
    """Write ``missing.json``, ``missing.md`` and the figures, each completely or not at all.

    Args:
        records: The rows.
        folder: An existing folder.

    Raises:
        ValueError: A file cannot be written.
    """
    drawn = {name: _png(figure) for name, figure in missing_data_figures.figures(records).items()}
    text = markdown(records)  # everything is made before the first file is written
    write_json(folder / "missing.json", list(records))
    write_text(folder / "missing.md", text)
    for name in missing_data_figures.NAMES:
        path = folder / f"{name}.png"
        if name in drawn:
            with replacing(path) as partial:
                partial.write_bytes(drawn[name])
        else:
            path.unlink(missing_ok=True)  # it belongs to an earlier evaluation


def _png(figure: Any) -> bytes:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=150)
    return image.getvalue()


def markdown(records: Sequence[Row]) -> str:
    """Make the usual tables of the field: accuracies and F1 in percent, MAE and correlation as they are."""
    first = records[0]
    columns = _columns(first)
    lines = ["# Missing data", "", "; ".join(_description(first)) + ".", ""]
    for group in _of(records, "group"):
        lines += [f"## {group['name']}", "", "| | " + " | ".join(heading for heading, _ in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        members = [row for row in _of(records, "condition") if row["group"] == group["name"]]
        lines += [_line(row["name"], [_cell(row, names) for _, names in columns]) for row in members]
        count, left_out = len(group["conditions"]), len(members) - len(group["conditions"])
        mean = f"**mean of {count}**" + (" (without the complete data)" if left_out else "")
        lines.append(_line(mean, [_cell(group, names, spread=True) for _, names in columns]))
        if any(name.startswith("auilc_") for name in group["metrics"]):
            areas = [_cell(group, [f"auilc_{name}" for name in names], area=True) for _, names in columns]
            lines.append(_line("AUILC", areas))
        if first["constant"]:
            levels = {"metrics": {name: {"mean": value, "sd": None} for name, value in first["constant"].items()}}
            lines.append(_line("best constant", [_cell(levels, names) for _, names in columns]))
        lines.append("")
    weighted = [row for row in records if row["weights"]]
    if weighted:
        lines += ["## Weights of the modalities", "", "| | " + " | ".join(MODALITIES) + " |", "|---" * 4 + "|"]
        for row in weighted:
            name = f"**{row['name']}, mean**" if row["kind"] == "group" else f"{row['group']}: {row['name']}"
            lines.append(_line(name, [_number(row["weights"][modality]["mean"]) for modality in MODALITIES]))
        lines.append("")
    lines += [f"- {note}" for note in [*_EXPLANATIONS, *notes(records)]]
    return "\n".join(lines) + "\n"


_EXPLANATIONS = (
    "Accuracies and F1 in percent. N0: negative or positive, without neutral samples; H0: negative or not.",
    "± is the standard deviation over mask seeds. It does not include differences between trainings with other seeds.",
    "AUILC is the area under the metric over the missing rate, not divided by the width of the rates; in the unit of "
    "the metric (accuracies in percent).",
    "best constant: the best result of a constant prediction, chosen for each metric on these labels.",
)


def _description(first: Row) -> tuple[str, str]:
    """Describe what was evaluated, and how."""
    dataset = f" of {first['dataset']}" if first["dataset"] else ""
    weights = "weights of an unknown epoch" if first["epoch"] is None else f"epoch {first['epoch']}"
    return (
        f"{first['module']}, {weights}, {first['stage']} on {first['samples']} samples{dataset}",
        f"{first['protocol']}, {first['mask_seeds']} mask seed(s), masks {first['masks']}",
    )


def _of(records: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in records if row["kind"] == kind]


def _columns(first: Row) -> list[tuple[str, tuple[str, ...]]]:
    known = first["metrics"]
    # three classes are shown if there are no seven, as usual for CH-SIMS
    hidden = {"Acc-3"} if "acc_7" in known else set()
    return [(heading, names) for heading, names in _COLUMNS if names[0] in known and heading not in hidden]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def _cell(row: Row, names: Sequence[str], spread: bool = False, area: bool = False) -> str:
    """Format the metrics of one heading, as "72.55/70.94" or "72.55 ± 0.40/70.94 ± 0.38"."""
    if area and not any(name in row["metrics"] for name in names):
        return ""
    return "/".join(_value(name, row["metrics"].get(name), spread) for name in names)


def _value(name: str, spread: Mapping[str, float | None] | None, with_sd: bool, sign: str = " ± ") -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    percent = not name.removeprefix("auilc_").startswith(("mae", "corr"))
    scale, digits = (100.0, 2) if percent else (1.0, 3)
    text = f"{scale * spread['mean']:.{digits}f}"
    if with_sd and spread["sd"] is not None:
        text += f"{sign}{scale * spread['sd']:.{digits}f}"
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(records: Sequence[Row], trainer: Trainer | None = None) -> None:
    """Print the groups as a table, and below it notes on results that need care."""
    screen = console(trainer)
    screen.print(table(records))
    for note in notes(records):
        screen.print(note, style="yellow", markup=False, highlight=False)


def table(records: Sequence[Row]) -> Table:
    """Make the table that is printed: means of the groups, and standard deviations over mask seeds."""
    first = records[0]
    grid = Table(title="\n".join(_description(first)), box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    grid.add_column("mean", no_wrap=True)
    columns = [
        (heading.split(" (")[0] + (f"\n{part}" if len(names) > 1 else ""), name)
        for heading, names in _columns(first)
        if heading not in ("Acc-5", "Acc-3") or "acc_2" in first["metrics"]
        for name, part in zip(names, ("N0", "H0"), strict=False)
    ]
    for heading, _ in columns:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in _of(records, "group"):
        cells = [_short(name, row["metrics"].get(name)) for _, name in columns]
        grid.add_row(row["name"], *cells)
    if first["constant"]:
        levels = {name: {"mean": value, "sd": None} for name, value in first["constant"].items()}
        grid.add_row("constant", *(_short(name, levels.get(name)) for _, name in columns), style="dim")
    return grid


def _short(name: str, spread: Mapping[str, float | None] | None) -> str:
    """Format as "72.5±0.4" or ".527±.004"; seven such columns fit in 80 characters."""
    if spread is None or spread["mean"] is None:
        return "-"
    percent = name not in ("mae", "corr")
    parts = [part for part in (spread["mean"], spread["sd"]) if part is not None]
    if percent:
        return "±".join(f"{100 * part:.1f}" for part in parts)
    return "±".join(re.sub(r"^(-?)0\.", r"\1.", f"{part:.3f}") for part in parts)


def notes(records: Sequence[Row]) -> list[str]:
    """Write one sentence for each result that needs care in its interpretation."""
    found = []
    first = records[0]
    if first["masks"] == "oracle":
        found.append(
            "masks oracle: the model knows what is missing. Published models derive that from the values: compare "
            "them with masks derived."
        )
    for group in _of(records, "group"):
        members = [row for row in _of(records, "condition") if row["group"] == group["name"]]
        kept = {tuple(row["condition"]["present"]): row for row in members if not any(row["condition"]["rates"])}
        complete = kept.get(MODALITIES)
        for present, row in kept.items():
            if complete is not None and len(present) == 1 and _worse(complete, row):
                found.append(f"{group['name']}: all modalities together give worse results than {present[0]} alone.")
    return found


def _worse(one: Row, other: Row) -> bool:
    """Whether one row is clearly worse than another by MAE, or by accuracy if there is no MAE."""
    name = "mae" if "mae" in one["metrics"] else "accuracy"
    a, b = one["metrics"][name]["mean"], other["metrics"][name]["mean"]
    if a is None or b is None:
        return False
    return bool(a > b * (1 + _HURTS)) if name == "mae" else bool(a < b * (1 - _HURTS))
