"""The benchmark of drafts on compressed caches: paired speed-ups, and texts that are compared on the same cache."""

import pytest

from benchmarks.compression import speed_tables
from benchmarks.compression.speculation import WHOLE, made, measured
from saccade.inference import Autoregressive, DecodingStats, PromptLookup, SnapKV
from tests.support.models import tiny_model


def test_speed_ups_are_those_of_each_prompt() -> None:
    stats = DecodingStats(requests=1, verify_steps=2, accepted=3)

    def one(plain: float, small: float, draft: float, both: float, text: list[int]):
        return {
            ("Autoregressive", WHOLE): ([plain, plain + 1, plain - 1], [1, 2], stats),
            ("PromptLookup 4", WHOLE): ([draft] * 3, [1, 2], stats),
            ("Autoregressive", "SnapKV"): ([small] * 3, [1, 3], stats),
            ("PromptLookup 4", "SnapKV"): ([both] * 3, text, stats),
        }

    rows = {row["method"]: row for row in made("case", [one(12, 6, 4, 3, [1, 3]), one(12, 12, 3, 4, [1, 2])])}
    both = rows["PromptLookup 4, SnapKV"]
    assert both["speedup"] == [3.5, 3, 4]
    assert both["product"] == [5, 4, 6]
    assert both["same_text"] == 1, "compared with the text on the same cache"
    assert both["runs"] == 2
    assert both["acceptance"] == 2.5
    plain = rows[f"Autoregressive, {WHOLE}"]
    assert plain["value"] == 12
    assert plain["run_spread"] == pytest.approx(2 / 12)


def test_a_model_is_measured_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", residual=0.3, seed=3)
    ways = {
        (name, cache): decoder(compressor=compressor, **settings)
        for cache, compressor in ((WHOLE, None), ("SnapKV", SnapKV(budget=0.3)))
        for name, decoder, settings in (
            ("Autoregressive", Autoregressive, {}),
            ("PromptLookup 4", PromptLookup, {"draft_length": 4, "control": "fixed"}),
        )
    }
    found = measured(model, ways, [3 + number % 7 for number in range(60)], 8, 2)
    assert all(len(times) == 2 and len(text) == 8 for times, text, _ in found.values())
    rows = made("tiny, 60 tokens, budget 0.3", [found])
    monkeypatch.setattr(speed_tables, "read", lambda name: rows if name == "compression_speculation" else [])
    table = speed_tables.speculation()
    assert table.count("1 of 1") == 4
    assert table.splitlines()[3].startswith("| PromptLookup 4, whole cache |")
