"""The rows of a decoding evaluation: what they contain, what is logged of them, and their files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from saccade.callbacks.decoding.figures import figure
from saccade.callbacks.decoding.totals import DecodingTotals
from saccade.common.files import replacing, write_json
from saccade.common.provenance import provenance
from saccade.common.records import plain
from saccade.inference import Decoder

DEGENERATE_BELOW = 0.7
"""Generated text is degenerate if its share of distinct 4-grams is below this times the real text's. Repetitive text is
easy to draft, so the acceptance rates of such a row are too high."""


def rows(
    decoders: Mapping[str, Decoder],
    totals: Mapping[str, Mapping[str | None, DecodingTotals]],
    *,
    baseline: str | None,
    references: Mapping[str, str],
    context: Mapping[str, Any],
    differing: Mapping[str, Sequence[str] | None] | None = None,
    pairs: Mapping[str, tuple[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Make one self-contained record for each decoder, and one for each of its categories.

    Args:
        decoders: Decoders by name.
        totals: By decoder and category, the totals over all ranks; those of all prompts under ``None``.
        baseline: Name of the decoder that speed-ups are relative to; ``None`` if there is none.
        references: By decoder, the name of the one with whose texts its own were compared token by token.
        context: Entries that all rows share: prompts, limits, ranks.
        differing: By decoder, the names of the prompts whose texts are not those of its reference; ``None`` without
            names.
        pairs: By the name of a row, the names of the decoder and the compressor that it combines.

    Returns:
        The rows of ``decoding.json``, in the order of ``decoders``; for each first that of all prompts.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")  # set by Lightning's seed_everything
    origin = provenance(None if seed is None else int(seed))
    records = []
    for name, decoder in decoders.items():
        for category, total in totals[name].items():
            base = totals[baseline].get(category) if baseline is not None else None
            agreement = _agreement_of(total, decoder) if name in references else None
            if agreement is not None and category is None and differing and differing.get(name) is not None:
                agreement["differing_prompts"] = list(differing[name] or ())
            stats = total.stats
            records.append(
                {
                    "name": name,
                    "category": category,
                    "decoder": type(decoder).__name__,
                    "lossless": decoder.lossless and decoder.compressor is None,
                    "baseline": name == baseline,
                    "settings": settings(decoder),
                    **_speeds(total, base),
                    "statistics": stats.to_dict()
                    | {"tokens_per_target_forward": stats.new_tokens / max(stats.target_forwards, 1)},
                    "per_request": total.request_means(),
                    "agreement": agreement,
                    "compression": _compression(name, decoder, total, references.get(name), (pairs or {}).get(name)),
                    "quality": _quality(total, base),
                    **context,
                    **origin,
                }
            )
    return records


def _speeds(total: DecodingTotals, base: DecodingTotals | None) -> dict[str, Any]:
    """The speed over all passes, and its speed-up with the lowest and the highest of all passes."""
    speed = total.stats.tokens_per_second
    reference = 0.0 if base is None else base.stats.tokens_per_second
    passes = [] if base is None else list(zip(total.speeds(), base.speeds(), strict=True))
    each = [own / other for own, other in passes if other > 0]
    return {
        "ms_per_token": 1000 / speed if speed > 0 else None,
        "speedup": speed / reference if reference > 0 else None,
        "speedup_range": [min(each), max(each)] if len(each) > 1 else None,
    }


def _agreement_of(total: DecodingTotals, decoder: Decoder) -> dict[str, Any]:
    counts = total.counts
    return {
        "identical_rows": counts["identical_rows"],
        "differing_rows": total.stats.requests - counts["identical_rows"],
        "differing_tokens": counts["differing_tokens"],
        # of the differing rows of a lossless decoder: those that differ first where the target nearly ties
        "near_tie_rows": counts["near_tie_rows"] if decoder.lossless else None,
        # the largest difference of logits that counted as nearly
        "near_tie_limit": total.near_tie_limit or None,
    }


def _compression(
    name: str, decoder: Decoder, total: DecodingTotals, reference: str | None, pair: tuple[str, str] | None
) -> dict[str, Any] | None:
    """What is left of the cache, and how near its texts are to those of the full one; ``None`` on the full cache."""
    if decoder.compressor is None:
        return None
    kind = type(decoder.compressor).__name__
    own, compressor = (name, kind) if pair is None else pair
    return {
        "decoder": own,
        "compressor": compressor,
        "class": kind,
        "settings": plain(decoder.compressor),
        # with whose texts on the same compressed cache `agreement` compares, and whether they have to be equal
        "reference": reference,
        "lossless_on_it": decoder.lossless,
        "tokens_as_full": total.tokens_as_full,
    }


def _quality(total: DecodingTotals, base: DecodingTotals | None) -> dict[str, Any]:
    real, generated = total.real_distinct_4, total.distinct_4
    return {
        "distinct_4": generated,
        "distinct_4_real": real,
        "degenerate": None if generated is None or not real else generated < DEGENERATE_BELOW * real,
        "slot_accuracy": total.slot_accuracy,
        "retention": _ratio(total.slot_accuracy, None if base is None else base.slot_accuracy),
        "turns_left_out": total.counts["turns_left_out"],
        **total.answer_quality(),
    }


def settings(decoder: Decoder) -> dict[str, Any]:
    """Return the settings of a decoder as values that JSON can represent; a model is represented by its path or id."""
    return plain(decoder) if is_dataclass(decoder) else {}


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row that are logged, by the last part of their name; unknown numbers are left out."""
    values = {key: value for key, value in row["statistics"].items() if not isinstance(value, Mapping)}
    values |= {"speedup": row["speedup"], "ms_per_token": row["ms_per_token"], **row["quality"]}
    if row["compression"]:
        values["tokens_as_full"] = row["compression"]["tokens_as_full"]
    values |= {key: value for key, value in (row["agreement"] or {}).items() if key != "differing_prompts"}
    return {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}


def write(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write ``decoding.json`` and ``decoding.png``, each completely or not at all.

    Args:
        records: The rows.
        folder: An existing folder.
    """
    write_json(folder / "decoding.json", list(records))
    with replacing(folder / "decoding.png") as partial:
        figure(records).savefig(partial, dpi=150)


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
