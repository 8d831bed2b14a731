"""Decoders measured on compressed caches: pairs, with whose texts theirs are compared, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rich.console import Console

from saccade.callbacks import DecodingEvaluation
from saccade.callbacks.decoding import figures, tables
from saccade.callbacks.decoding.measured import references
from saccade.inference import Autoregressive, Decoder, FullKV, HybridKV, PromptLookup, Sampling, SnapKV, StreamingLLM
from saccade.inference.engine.session import Session
from saccade.inference.verification.near_ties import first_difference
from tests.callbacks.tiny import TinyModule, loader, rows, tiny_llama, trainer
from tests.support.models import tiny_model

IDS = rows(3, length=110)
SNAP = SnapKV(budget=0.7)
HYBRID = HybridKV(budget=0.7, theta=2.0, recent=8, chunk=4)


@dataclass
class Wrong(PromptLookup):
    """Says that it is lossless, and changes the last token of every row."""

    def generate(self, *args: Any, **settings: Any) -> Any:
        out = super().generate(*args, **settings)
        for tokens in out.tokens:
            tokens[-1] = 30 if tokens[-1] != 30 else 29
        return out


class Bare(Decoder):
    """A decoder without settings."""

    def drafter(self, model: Any, request: Any) -> Any:
        raise NotImplementedError


def validate(folder: Any, decoders: dict[str, Decoder], **settings: Any) -> list[dict[str, Any]]:
    callback = DecodingEvaluation(decoders, **({"prompt_length": 100, "max_new_tokens": 12} | settings))
    runner = trainer(folder, callbacks=[callback])
    runner.validate(TinyModule(), loader(IDS), verbose=False)
    for row in callback.rows:
        key = f"decoding/{row['name']}/kv_host_bytes"
        assert runner.callback_metrics[key] == row["statistics"]["kv_host_bytes"]
    return callback.rows


@pytest.mark.figures
def test_every_pair_is_measured_and_compared_on_its_own_cache(tmp_path, capsys) -> None:
    compressors = {"snap": SNAP, "hybrid-0.7": HYBRID, "full": FullKV()}
    found = validate(tmp_path, {"lookup": PromptLookup(), "wrong": Wrong()}, compressors=compressors, transformers=True)
    names = ["autoregressive", "transformers", "lookup", "wrong"]
    names += [f"{name}+{kind}" for kind in compressors for name in ("autoregressive", "lookup", "wrong")]
    by_name = {row["name"]: row for row in found}
    assert list(by_name) == names
    model = tiny_llama()
    for kind, compressor in compressors.items():
        own = Autoregressive(compressor=compressor)
        right = [own.generate(model, row[None, :100], max_new_tokens=12) for row in IDS]
        full = [Autoregressive().generate(model, row[None, :100], max_new_tokens=12).tokens[0] for row in IDS]
        same = sum(
            a == b for out, text in zip(right, full, strict=True) for a, b in zip(out.tokens[0], text, strict=True)
        )
        for name, differing in (("autoregressive", 0), ("lookup", 0), ("wrong", 3)):
            row = by_name[f"{name}+{kind}"]
            made = row["compression"]
            assert (made["decoder"], made["compressor"], made["reference"]) == (name, kind, f"autoregressive+{kind}")
            assert row["agreement"]["differing_rows"] == differing
            assert row["agreement"]["near_tie_rows"] == 0
            assert row["lossless"] is False, "against the full cache nothing is lossless here"
            assert made["lossless_on_it"] is True
            if name != "wrong":
                assert made["tokens_as_full"] == pytest.approx(same / 36)
            assert row["speedup"] == pytest.approx(
                row["statistics"]["tokens_per_second"] / found[0]["statistics"]["tokens_per_second"]
            )
        stats = by_name[f"autoregressive+{kind}"]["statistics"]
        assert stats["kv_cache_bytes"] == max(out.stats.kv_cache_bytes for out in right)
        assert stats["kv_host_bytes"] == max(out.stats.kv_host_bytes for out in right)
        assert (stats["kv_host_bytes"] > 0) == (kind == "hybrid-0.7")
    assert by_name["lookup+snap"]["compression"]["tokens_as_full"] < 1
    assert by_name["lookup+full"]["compression"]["tokens_as_full"] == 1
    assert by_name["lookup"]["compression"] is None
    said = capsys.readouterr().out
    assert "wrong+snap: 3 of 3 rows differ from autoregressive+snap" in " ".join(said.split())
    assert "hybrid-0.7" in said


def test_tables_and_figure_show_both_kinds_of_bytes(tmp_path) -> None:
    found = validate(tmp_path, {"self_speculative": PromptLookup()}, compressors={"hybrid-0.7": HYBRID})
    screen = Console(width=80, record=True)
    screen.print(tables.compression_table(found))
    screen.print(tables.table(found))
    text = screen.export_text()
    assert "…" not in text
    assert "+hybrid" not in text, "the first table is that of the full cache"
    stats = found[-1]["statistics"]
    for amount in (stats["kv_cache_bytes"], stats["kv_host_bytes"]):
        assert figures.size(amount) in text
    panels = figures.figure(found).axes
    assert len(panels) == 3
    drawn = " ".join(label.get_text() for label in panels[1].texts)
    assert f"{figures.size(stats['kv_cache_bytes'])} + {figures.size(stats['kv_host_bytes'])}" in drawn
    plain = [row for row in found if row["compression"] is None]
    assert tables.compression_table(plain) is None
    assert len(figures.figure(plain).axes) == 2


def test_a_decoder_with_a_compressor_of_its_own_is_compared_with_autoregressive_on_it(tmp_path) -> None:
    own = {"plain": Autoregressive(compressor=SNAP), "lookup": PromptLookup(compressor=SnapKV(budget=0.7))}
    found = validate(tmp_path, own | {"alone": PromptLookup(compressor=StreamingLLM(budget=0.7))})
    _, plain, lookup, alone = found
    assert plain["compression"]["reference"] == lookup["compression"]["reference"] == "plain"
    assert lookup["agreement"]["identical_rows"] == 3
    assert lookup["compression"]["compressor"] == "SnapKV"
    assert alone["agreement"] is None, "nothing has read its cache one token at a time"
    assert alone["compression"]["tokens_as_full"] < 1


def test_with_whom_texts_are_compared() -> None:
    decoders = {"autoregressive": Autoregressive(), "lookup": PromptLookup(), "on": PromptLookup(compressor=SNAP)}
    assert references(decoders, True, None) == {"autoregressive": "autoregressive", "lookup": "autoregressive"}
    assert references(decoders, False, None) == {}
    assert references(decoders, True, Sampling(seed=0, coupling="rejection")) == {}
    both = decoders | {"base": Autoregressive(compressor=SNAP), "later": PromptLookup(compressor=SnapKV(budget=0.7))}
    assert references(both, False, Sampling(seed=0)) == {"base": "base", "later": "base"}


def test_a_near_tie_is_judged_on_the_compressed_cache() -> None:
    model = tiny_model(residual=0.3, seed=3)
    prompt = torch.randint(3, 40, (120,), generator=torch.Generator().manual_seed(0)).tolist()
    made = HybridKV(budget=0.6, theta=2.0, recent=8, chunk=8)
    text = Autoregressive(compressor=made).generate(model, [prompt], max_new_tokens=16, eos_token_id=()).tokens[0]
    full = Autoregressive().generate(model, [prompt], max_new_tokens=16, eos_token_id=()).tokens[0]
    place = next(place for place, (a, b) in enumerate(zip(text, full, strict=True)) if a != b)
    assert place > 0
    with Session(model, 140, compressor=made) as session:
        session.prefill([prompt])
        logits = session.forward(torch.tensor([text[:place]]))[0, -1]  # as one chain
    tie = first_difference(model, prompt, full, text, compressor=made)
    assert tie.gap == pytest.approx(float(logits.max() - logits[full[place]]), abs=1e-9)
    assert int(logits.argmax()) == text[place]
    assert tie.gap != pytest.approx(first_difference(model, prompt, full, text).gap, abs=1e-3)


@pytest.mark.parametrize(
    ("decoders", "compressors", "needles"),
    [
        ({}, {"a b": SNAP}, ["compressors must have names that can be logged, got 'a b'"]),
        ({}, {"snap": "SnapKV"}, ["compressors.snap must be a saccade.inference.CacheCompressor, got str"]),
        ({"own": PromptLookup(compressor=SNAP)}, {"snap": SNAP}, ["decoders.own must have no compressor of its own"]),
        ({"bare": Bare()}, {"snap": SNAP}, ["decoders.bare must have a setting compressor", "Bare"]),
        ({"autoregressive": Autoregressive(compressor=SNAP)}, {}, ["decoders.autoregressive must keep the full cache"]),
        ({"a": PromptLookup(), "a+b": PromptLookup()}, {"b": SNAP}, ["name of a pair, got a+b"]),
    ],
)
def test_pairs_that_cannot_be_combined_are_refused_when_they_are_made(decoders, compressors, needles) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        DecodingEvaluation(decoders, compressors=compressors)
    for needle in needles:
        assert needle in str(caught.value)


def test_a_budget_that_is_too_small_names_what_the_shortest_prompt_needs(tmp_path) -> None:
    shorter = [{"input_ids": row[: 60 + 20 * number]} for number, row in enumerate(IDS)]
    callback = DecodingEvaluation({}, prompt_length=100, max_new_tokens=4, compressors={"h": HybridKV(budget=0.1)})
    said = (
        r"decoders.autoregressive\+h \(Autoregressive\) failed: budget must be at least \S+ for a prompt of 60 tokens"
    )
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, callbacks=[callback]).validate(
            TinyModule(), torch.utils.data.DataLoader(shorter[::-1]), verbose=False
        )


def test_a_window_is_refused_before_anything_is_decoded(tmp_path) -> None:
    module = TinyModule()
    module.model.config.layer_types = ["sliding_attention"] * 3
    module.model.config.sliding_window = 16
    callback = DecodingEvaluation({}, prompt_length=100, compressors={"snap": SNAP})
    with pytest.raises(ValueError, match=r"decoders.autoregressive\+snap .*cannot be measured: model must have full"):
        trainer(tmp_path, callbacks=[callback]).validate(module, loader(IDS), verbose=False)
