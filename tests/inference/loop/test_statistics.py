"""The record of what a decoder did: arithmetic, pooling, and what the loop counts."""

from __future__ import annotations

import json

import pytest

from saccade.inference import Autoregressive, DecodingStats
from tests.support.decoders import DECODERS, Proposing
from tests.support.models import prompts, tiny_model

MODEL = tiny_model(residual=0.3)
BATCH = prompts(MODEL, [9, 4, 6])


def record(*rounds: tuple[int, int], **fields: float) -> DecodingStats:
    stats = DecodingStats(**fields)  # type: ignore[arg-type]
    for drafted, accepted in rounds:
        stats.record(drafted, accepted)
    return stats


def test_the_derived_figures() -> None:
    stats = record(
        (4, 4), (4, 1), (2, 0), requests=2, new_tokens=10, seconds=4.0, prefill_seconds=1.0, first_token_seconds=2.0
    )
    assert (stats.verify_steps, stats.drafted, stats.accepted) == (3, 10, 5)
    assert stats.acceptance_histogram == {4: 1, 1: 1, 0: 1}
    assert stats.mean_accepted_draft_tokens == 5 / 3
    assert stats.mean_acceptance_length == 1 + 5 / 3
    assert stats.draft_acceptance_rate == 0.5
    assert stats.tokens_per_second == 2.5
    assert stats.time_to_first_token == 1.0
    assert stats.time_per_output_token == 3.0 / 8


def test_an_empty_record_divides_by_nothing() -> None:
    values = DecodingStats().to_dict()
    assert values["mean_acceptance_length"] == 1.0
    assert values["draft_acceptance_rate"] == values["tokens_per_second"] == values["time_per_output_token"] == 0.0


def test_records_pool() -> None:
    first = record((4, 4), (4, 1), requests=1, new_tokens=8, peak_memory_bytes=7, kv_cache_bytes=1, seconds=1.5)
    second = record((4, 4), requests=2, new_tokens=3, peak_memory_bytes=5, kv_cache_bytes=9, seconds=2.5)
    pooled = first + second
    assert pooled.acceptance_histogram == {1: 1, 4: 2}
    assert (pooled.requests, pooled.new_tokens, pooled.seconds) == (3, 11, 4.0)
    assert (pooled.peak_memory_bytes, pooled.kv_cache_bytes) == (7, 9)
    assert pooled.mean_acceptance_length == 1 + 9 / 3
    assert first.acceptance_histogram == {4: 1, 1: 1}  # the parts are left alone
    assert sum([first, second], DecodingStats()) == pooled


def test_a_record_is_plain_json_with_the_fields_names() -> None:
    values = json.loads(json.dumps(record((4, 2)).to_dict()))
    assert values["acceptance_histogram"] == {"2": 1}
    for name in (
        "mean_acceptance_length",
        "mean_accepted_draft_tokens",
        "draft_acceptance_rate",
        "tokens_per_second",
        "time_to_first_token",
        "time_per_output_token",
        "target_forwards",
        "draft_forwards",
        "peak_memory_bytes",
        "kv_cache_bytes",
        "kv_host_bytes",
    ):
        assert name in values


@pytest.mark.parametrize("name", DECODERS)
def test_what_the_loop_counts(name: str) -> None:
    out = DECODERS[name](MODEL).generate(MODEL, **BATCH, max_new_tokens=30)
    for stats, tokens, length in zip(out.per_request, out.tokens, (9, 4, 6), strict=True):
        assert (stats.requests, stats.prompt_tokens, stats.new_tokens) == (1, length, len(tokens))
        # the first token is the prefill's; behind it every round gives its accepted drafts and one more
        assert stats.new_tokens == stats.requests + stats.accepted + stats.verify_steps
        assert sum(stats.acceptance_histogram.values()) == stats.verify_steps
        assert sum(count * rounds for count, rounds in stats.acceptance_histogram.items()) == stats.accepted
        assert stats.accepted <= stats.drafted
        assert stats.target_forwards == stats.verify_steps + 1
        assert 0 < stats.prefill_seconds <= stats.seconds
    pooled = out.stats
    assert pooled.new_tokens == sum(stats.new_tokens for stats in out.per_request) == 90
    assert pooled.verify_steps == sum(stats.verify_steps for stats in out.per_request)
    assert pooled.drafted == sum(stats.drafted for stats in out.per_request)
    # a forward of a batch counts once in the pooled record
    assert pooled.target_forwards == max(stats.target_forwards for stats in out.per_request)
    assert pooled.seconds >= max(stats.seconds for stats in out.per_request)
    assert pooled.kv_cache_bytes > 0
    assert pooled.peak_memory_bytes == 0


def test_autoregressive_counts() -> None:
    stats = Autoregressive().generate(MODEL, **BATCH, max_new_tokens=30).stats
    assert (stats.target_forwards, stats.draft_forwards, stats.drafted, stats.accepted) == (30, 0, 0, 0)
    assert stats.acceptance_histogram == {0: 87}
    assert stats.mean_acceptance_length == 1.0


def test_drafts_that_the_text_had_no_room_for_are_not_counted_as_accepted() -> None:
    free = Autoregressive().generate(MODEL, BATCH["input_ids"][:1], max_new_tokens=30).tokens[0]
    oracle = Proposing(lambda text, limit: free[len(text) - 9 :])
    stats = oracle.generate(MODEL, BATCH["input_ids"][:1], max_new_tokens=30).stats
    # 29 tokens behind the first: four rounds of 6 + 1, and one of 1 without a draft
    assert stats.acceptance_histogram == {6: 4, 0: 1}
    assert (stats.drafted, stats.accepted, stats.new_tokens) == (24, 24, 30)
    cut = oracle.generate(MODEL, BATCH["input_ids"][:1], max_new_tokens=30, eos_token_id=free[4]).stats
    first = free.index(free[4])
    assert cut.new_tokens == first + 1
    assert cut.accepted == first  # one for each token behind the first, the EOS included
