"""LVSpec on real models: strict settings are lossless, the audit is complete, caches follow the emitted text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from saccade.inference import GenerationOutput, LVSpec
from saccade.inference.verification.relaxed import (
    FLy,
    FLyPlus,
    Judged,
    RandomRelaxation,
    RelaxedRule,
    RowState,
    Ruling,
    Strict,
    VisualRelaxation,
)
from tests.support.video_checks import (
    Stock,
    VideoAudit,
    asked,
    stock_tokens,
    video_draft_model,
    video_model,
)
from tests.support.video_models import FAMILIES, VideoPrompts, video_prompts

RULES: dict[str, RelaxedRule] = {
    "visual": VisualRelaxation(relaxation=0.5, pst_window=2),
    "running": VisualRelaxation(relaxation=0.5, selection="running", history=16),
    "loose": VisualRelaxation(relaxation=1.0, pst_window=0),
    "top_m": VisualRelaxation(relaxation=1.0, loose="top_m", top_m=2),
    "random": RandomRelaxation(rate=0.6, seed=3),
    "fly": FLy(threshold=0.5, window=1),
    "fly_plus": FLyPlus(threshold=0.5),
    "strict": Strict(),
}
NEW, LENGTH = 18, 4


@dataclass
class Unguarded(VisualRelaxation):
    """Without guards: a random model likes placeholders as much as words."""

    def begin(self, row: int = 0, guarded: Any = ()) -> RowState:
        return super().begin(row)


@cache
def right_texts(family: str, seed: int, rows: int, new: int) -> list[list[int]]:
    return stock_tokens(video_model(family), video_prompts(family, rows=rows, seed=seed), family, new)


@cache
def stocks(family: str, seed: int, rows: int) -> list[Stock]:
    prompts = video_prompts(family, rows=rows, seed=seed)
    return [Stock(video_model(family), prompts.row(index, family)) for index in range(rows)]


def uncaptured(decoder: LVSpec) -> LVSpec:
    """The decoder on the graphs' steps, run one by one on a processor."""
    vars(decoder).pop("_pool", None)
    decoder.engine = "graph"
    decoder.pool.uncaptured = True
    return decoder


def decode(decoder: LVSpec, family: str, prompts: VideoPrompts, new: int = NEW, **settings: Any) -> GenerationOutput:
    return decoder.generate(video_model(family), **asked(prompts), max_new_tokens=new, **settings)


@pytest.mark.parametrize("rule", [VisualRelaxation(relaxation=0.0, pst_window=0), Strict()], ids=["visual", "strict"])
@pytest.mark.parametrize("two_models", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_relaxed_is_the_targets_own_text(family: str, two_models: bool, rule: RelaxedRule) -> None:
    prompts = video_prompts(family, rows=3, seed=1)
    draft = video_draft_model(family) if two_models else None
    for length in (1, 10):
        decoder = LVSpec(draft_model=draft, draft_length=length, rule=rule, prune_ratio=0.7)
        out = decode(decoder, family, prompts)
        assert out.tokens == right_texts(family, 1, 3, NEW)
        assert out.stats.relaxed == 0
        assert out.stats.accepted > 0
    assert decode(uncaptured(decoder), family, prompts).tokens == right_texts(family, 1, 3, NEW)
    eos = [right_texts(family, 1, 3, NEW)[0][6], right_texts(family, 1, 3, NEW)[1][10]]
    out = decode(LVSpec(draft_model=draft, rule=rule), family, prompts, eos_token_id=eos)
    for tokens, text in zip(out.tokens, right_texts(family, 1, 3, NEW), strict=True):
        assert tokens == text[: next((at for at, token in enumerate(text) if token in eos), NEW) + 1]


@pytest.mark.parametrize("two_models", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_relaxed_is_the_drafts_text_with_a_target_token_in_every_round(
    family: str, two_models: bool
) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=2)
    draft_model = video_draft_model(family) if two_models else model
    rule = Unguarded(relaxation=1.0, pst_window=0)
    decoder = LVSpec(video_draft_model(family) if two_models else None, LENGTH, rule, prune_ratio=0.7)
    audit = VideoAudit(decoder, model, prompts, family)
    out = decode(decoder, family, prompts, 1 + 3 * (LENGTH + 1))
    assert out.stats.acceptance_histogram == {LENGTH: 6}
    assert out.stats.relaxed > 0
    for row, tokens in enumerate(out.tokens):
        target = stocks(family, 2, 2)[row]
        draft = Stock(draft_model, prompts.row(row, family), audit.selector.kept[row])
        text = [int(target.read([])[0][-1].argmax())]
        for _ in range(3):
            for speaker in (*[draft] * LENGTH, target):
                text.append(int(speaker.read(text)[0][-1].argmax()))
        assert tokens == text
    # a limit within a round cuts it
    out = decode(LVSpec(decoder.draft_model, LENGTH, rule, prune_ratio=0.7), family, prompts, 1 + LENGTH + 1 + 2)
    assert out.stats.acceptance_histogram == {1: 2, LENGTH: 2}


def recounted(stock: Stock, tokens: list[int]) -> list[int]:
    """The target's choice at every position of a text, by reading it once."""
    logits, _ = stock.read(tokens[:-1])
    choices: list[int] = logits[-len(tokens) :].argmax(-1).tolist()
    return choices


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RULES)
def test_the_audit_is_what_a_second_reading_finds(name: str, family: str) -> None:
    prompts = video_prompts(family, rows=3, seed=3)
    decoder = LVSpec(draft_length=6, rule=RULES[name], prune_ratio=0.7)
    out = decode(decoder, family, prompts)
    assert len(out.audit) == 3
    for row, tokens in enumerate(out.tokens):
        choices = recounted(stocks(family, 3, 3)[row], tokens)
        assert tokens[0] == choices[0] == right_texts(family, 3, 3, NEW)[row][0]
        differing = {at for at in range(NEW) if tokens[at] != choices[at]}
        audit = {entry.position: entry for entry in out.audit[row]}
        assert len(audit) == len(out.audit[row])  # no place was judged twice
        accepted = {at for at, entry in audit.items() if at < NEW and entry.reason in ("loose", "pst")}
        assert differing == accepted
        assert out.per_request[row].relaxed == len(differing)
        assert len(differing) <= out.per_request[row].accepted
        for at, entry in audit.items():
            if at >= NEW:
                continue
            assert entry.choice == choices[at]
            assert tokens[at] == (entry.drafted if entry.reason in ("match", "loose", "pst") else entry.choice)
            assert (entry.drafted == entry.choice) == (entry.reason == "match")
    assert out.stats.relaxed == sum(stats.relaxed for stats in out.per_request)
    assert out.stats.relaxed_share == out.stats.relaxed / (3 * NEW)
    assert (out.stats.relaxed == 0) == (name == "strict")


def relevance(stock: Stock, text: list[int], layer: int | str, neighbours: int) -> Tensor:
    """Of every place of prompt and text, from the model's own states: the mean of the largest cosines."""
    _, _, states = stock.observe(text, layer)
    cosines = F.normalize(states, dim=-1) @ F.normalize(states[stock.visual], dim=-1).T
    return cosines.sort(descending=True).values[:, :neighbours].mean(-1)


@pytest.mark.parametrize("engine", ["eager", "uncaptured"])
@pytest.mark.parametrize("score_at", ["judge", "draft", "max"])
@pytest.mark.parametrize("layer", [-1, 0, "norm"])
@pytest.mark.parametrize("family", FAMILIES)
def test_relevance_is_that_of_the_models_own_states(family: str, layer: int | str, score_at: Any, engine: str) -> None:
    prompts = video_prompts(family, rows=2, seed=4)
    rule = VisualRelaxation(relaxation=0.5)
    decoder = LVSpec(draft_length=5, rule=rule, prune_ratio=0.7, layer=layer, score_at=score_at, neighbours=3)
    decoder = uncaptured(decoder) if engine == "uncaptured" else decoder
    out = decode(decoder, family, prompts)
    for row, tokens in enumerate(out.tokens):
        stock = stocks(family, 4, 2)[row]
        scores = relevance(stock, tokens, layer, 3)[-NEW - 1 :]  # from the last token of the prompt
        compared = 0
        for entry in out.audit[row]:
            if entry.position >= NEW or entry.reason not in ("match", "loose", "pst"):
                continue  # the state of a rejected token is not in the text
            judge, own = scores[entry.position], scores[entry.position + 1]
            right = {"judge": judge, "draft": own, "max": max(judge, own)}[score_at]
            assert entry.relevance == pytest.approx(float(right), abs=1e-5)
            compared += 1
        assert compared > 5


def test_layers_and_places_are_not_the_same() -> None:
    prompts = video_prompts("qwen2_5_vl", seed=4)

    def first(layer: int | str, score_at: Any, neighbours: int = 3) -> float | None:
        rule = VisualRelaxation(relaxation=1.0)
        decoder = LVSpec(rule=rule, layer=layer, score_at=score_at, neighbours=neighbours)
        return decode(decoder, "qwen2_5_vl", prompts, 8).audit[0][0].relevance

    found = [first(layer, at) for layer in (-1, 1, 0, "norm") for at in ("judge", "draft")] + [first(-1, "judge", 1)]
    assert len({round(value or 0.0, 6) for value in found}) == 9
    assert first(2, "judge") == first(-1, "judge")
    assert first(-3, "draft") == first(0, "draft")


@pytest.mark.parametrize("family", FAMILIES)
def test_places_above_the_threshold_are_strict(family: str) -> None:
    prompts = video_prompts(family, rows=3, seed=5)

    def run(threshold: float, pst_window: int) -> GenerationOutput:
        rule = VisualRelaxation(selection="threshold", threshold=threshold, pst_window=pst_window)
        return decode(LVSpec(draft_length=6, rule=rule, prune_ratio=0.7), family, prompts)

    seen = sorted(entry.relevance or 0.0 for row in run(2.0, 0).audit for entry in row)
    threshold = seen[len(seen) // 2]
    shifted = 0
    for pst_window in (0, 3):
        reasons = set()
        for row, tokens in enumerate((out := run(threshold, pst_window)).tokens):
            choices = recounted(stocks(family, 5, 3)[row], tokens)
            for entry in out.audit[row]:
                assert entry.relevance is not None
                reasons.add((entry.relevance >= threshold, entry.reason))
                if entry.relevance >= threshold and entry.position < NEW and entry.reason != "pst":
                    assert tokens[entry.position] == choices[entry.position]
                shifted += entry.reason == "pst"
        assert {(True, "loose"), (False, "reject")}.isdisjoint(reasons)
        assert {(False, "loose"), (True, "reject")} <= reasons
        assert pst_window or not shifted
    assert shifted > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_end_of_text_is_never_relaxed(family: str) -> None:
    prompts = video_prompts(family, rows=3, seed=6)
    decoder = LVSpec(draft_length=6, rule=VisualRelaxation(relaxation=1.0), prune_ratio=0.7)
    free = decode(decoder, family, prompts)
    # tokens of accepted mismatches, drafted or chosen: each would do harm as EOS
    relaxed = [entry for row in free.audit for entry in row if entry.reason == "loose" and entry.position < NEW - 6]
    guarded = 0
    for eos in sorted({relaxed[0].drafted, relaxed[0].choice, relaxed[-1].drafted, relaxed[-1].choice}):
        out = decode(decoder, family, prompts, eos_token_id=eos)
        for row, tokens in enumerate(out.tokens):
            choices = recounted(stocks(family, 6, 3)[row], tokens)
            assert eos not in tokens[:-1]
            assert (tokens[-1] == eos) or len(tokens) == NEW
            assert tokens[0] == choices[0]
            assert [token == eos for token in tokens] == [choice == eos for choice in choices]
            for entry in out.audit[row]:
                if eos in (entry.drafted, entry.choice):
                    assert entry.reason in ("match", "guard")
                    guarded += entry.reason == "guard"
    assert guarded > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_placeholders_and_other_special_tokens_are_guarded_too(family: str) -> None:
    prompts, model = video_prompts(family, rows=3, seed=7), video_model(family)
    special = {model.config.image_token_id, model.config.video_token_id}
    guarded = 0
    for seed in range(3):
        prompts = video_prompts(family, rows=3, seed=seed)
        for row in decode(LVSpec(rule=VisualRelaxation(relaxation=1.0)), family, prompts, 30).audit:
            for entry in row:
                if special & {entry.drafted, entry.choice}:
                    assert entry.reason in ("match", "guard")
                    guarded += entry.reason == "guard"
    assert guarded > 0


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("two_models", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_caches_hold_the_emitted_text_after_every_round(family: str, two_models: bool, positions: Any) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=8)
    decoder = LVSpec(
        draft_model=video_draft_model(family) if two_models else None,
        draft_length=6,
        rule=VisualRelaxation(relaxation=0.6),
        prune_ratio=0.6,
        positions=positions,
    )
    audit = VideoAudit(decoder, model, prompts, family)
    out = decode(decoder, family, prompts, 24)  # rows accept different numbers of tokens, and end in different rounds
    assert audit.rejections > 0
    assert out.stats.relaxed > 0
    assert min(audit.rounds, audit.catch_ups) >= 3


@pytest.mark.parametrize("two_models", [False, True])
def test_a_row_may_end_before_the_draft_has_read_a_prompt(two_models: bool) -> None:
    family = "llava_onevision"
    prompts = video_prompts(family, rows=3, seed=8)
    eos = right_texts(family, 8, 3, NEW)[1][0]
    draft = video_draft_model(family) if two_models else None
    out = decode(LVSpec(draft, rule=VisualRelaxation(relaxation=0.6)), family, prompts, eos_token_id=eos)
    assert out.tokens[1] == [eos]
    for row in (0, 2):
        assert len(out.tokens[row]) > 1
        alone = decode(
            LVSpec(draft, rule=VisualRelaxation(relaxation=0.6)), family, prompts.row(row, family), eos_token_id=eos
        )
        assert alone.tokens == [out.tokens[row]]


@pytest.mark.parametrize("engine", ["eager", "uncaptured"])
@pytest.mark.parametrize("name", RULES)
def test_a_row_does_not_depend_on_its_neighbours_or_on_the_engine(name: str, engine: str) -> None:
    family = "qwen2_5_vl"
    prompts = video_prompts(family, rows=3, seed=3)
    whole = decode(LVSpec(draft_length=6, rule=RULES[name], prune_ratio=0.7), family, prompts)
    decoder = LVSpec(draft_length=6, rule=RULES[name], prune_ratio=0.7)
    decoder = uncaptured(decoder) if engine == "uncaptured" else decoder
    assert decode(decoder, family, prompts).tokens == whole.tokens
    # random numbers belong to a place in the batch; all else belongs to the text
    for row in range(1 if name == "random" else 3):
        alone = decode(decoder, family, prompts.row(row, family))
        assert alone.tokens == whole.tokens[row : row + 1]
        assert [entry.reason for entry in alone.audit[0]] == [entry.reason for entry in whole.audit[row]]
        assert alone.stats.relaxed == whole.per_request[row].relaxed


def test_rules_see_the_emitted_text_and_not_the_prompt() -> None:
    family, seen = "llava_onevision", []

    class Spy(VisualRelaxation):
        def judge(self, judged: Judged, state: RowState) -> Ruling:
            seen.append((list(judged.recent), state.position))
            return super().judge(judged, state)

    out = decode(LVSpec(draft_length=3, rule=Spy(relaxation=0.5)), family, video_prompts(family, seed=3), 80)
    assert seen[0] == (out.tokens[0][:1], 0)
    for recent, position in seen:
        assert recent == out.tokens[0][: position + 1][-64:]
    assert len(seen[-1][0]) == 64


@pytest.mark.parametrize(("selector", "scored"), [("two_stage", True), ("attention", True), ("random", False)])
def test_other_selectors_serve_too(selector: str, scored: bool) -> None:
    family = "qwen2_5_vl"
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=9)
    decoder = LVSpec(selector=selector, prune_ratio=0.5, rule=VisualRelaxation(relaxation=0.0, pst_window=0))
    assert decoder.recording(model).attention == scored
    assert decode(decoder, family, prompts).tokens == right_texts(family, 9, 2, NEW)


def test_states_are_noted_for_rules_that_look_at_them_alone() -> None:
    model: PreTrainedModel = video_model("qwen2_5_vl")
    assert LVSpec().recording(model).layer == -1
    assert LVSpec(layer="norm").recording(model).layer == "norm"
    for rule in (Strict(), RandomRelaxation(), FLy(), FLyPlus()):
        assert LVSpec(rule=rule).recording(model).layer is None
    assert not LVSpec.lossless


def test_relaxation_grows_from_strict_to_loose() -> None:
    """The share of tokens that differ from the target's choice rises with lambda, and so does what a round accepts."""
    lengths, shares = [], []
    for relaxation in (0.0, 0.4, 0.7, 1.0):
        out = [
            decode(LVSpec(rule=Unguarded(relaxation, pst_window=0)), family, video_prompts(family, rows=3, seed=1), 40)
            for family in FAMILIES
        ]
        lengths.append(sum(each.stats.mean_accepted_draft_tokens for each in out))
        shares.append(sum(each.stats.relaxed_share for each in out))
    assert lengths == sorted(lengths)
    assert shares == sorted(shares)
    assert torch.tensor(lengths).diff().min() > 0.3
