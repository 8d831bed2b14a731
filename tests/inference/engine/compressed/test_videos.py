"""Compressed caches of prompts with videos: positions, batches, and trees that are verified on top of them."""

from dataclasses import replace

import pytest

from saccade.inference import Autoregressive, HybridKV, LookM, PromptLookup, SelfSpeculative, SpecVLM, VLCache
from tests.support.video_models import ALL_FAMILIES, tiny_video_model, video_prompts


def text(decoder, model, batch):
    """What a decoder writes after a batch of prompts."""
    return decoder.generate(model, batch.input_ids, attention_mask=batch.attention_mask, **batch.visual, **NEW)


NEW = {"max_new_tokens": 12, "eos_token_id": ()}
MIXED = HybridKV(budget=0.6, theta=0.5, sparsity="threshold", ratio=4.0, recent=4, sinks=2, chunk=4, window=8)
WATCHED = replace(MIXED, budget=0.8, min_static=0.5, max_static=0.5, probation=4, most_lost=0.3)


@pytest.mark.parametrize(
    ("compressor", "family"),
    [
        *((MIXED, family) for family in ALL_FAMILIES),
        (WATCHED, "qwen2_5_vl"),
        (LookM(budget=0.6, window=8), "qwen2_5_vl"),
        (VLCache(budget=0.6, window=8), "llava_onevision"),
    ],
)
def test_speculation_writes_the_text_of_the_compressed_cache(compressor, family):
    model = tiny_video_model(family)
    batch = video_prompts(family, 2, seed=3)
    full = text(Autoregressive(), model, batch)
    right = text(Autoregressive(compressor=compressor), model, batch)
    assert right.tokens != full.tokens, "the compression must matter here"
    for decoder in (
        PromptLookup(draft_length=3, compressor=compressor, control="fixed"),
        SelfSpeculative({"mlp": [1]}, 3, gamma=0.0, adaptive=False, compressor=compressor, control="fixed"),
        SpecVLM(tiny_video_model(family, layers=1, seed=1), prune_ratio=0.5, compressor=compressor, control="fixed"),
    ):
        for engine in ("eager", "graph"):
            decoder.engine = engine
            vars(decoder).pop("_pool", None)
            decoder.pool.uncaptured = True
            found = text(decoder, model, batch)
            assert found.tokens == right.tokens
            assert found.stats.accepted < found.stats.drafted


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_budget_of_one_leaves_positions_as_they_were(family):
    model, batch = tiny_video_model(family), video_prompts(family, 2, seed=3)
    full = text(Autoregressive(), model, batch)
    for theta in (0.0, 2.0):
        whole = HybridKV(budget=1.0, theta=theta, recent=4, sinks=2, chunk=4)
        assert text(Autoregressive(compressor=whole), model, batch).tokens == full.tokens


def test_a_batch_of_videos_is_what_its_rows_are_alone():
    model, batch = tiny_video_model("qwen2_5_vl"), video_prompts("qwen2_5_vl", 3, seed=3)
    decoder = Autoregressive(compressor=replace(MIXED, budget=0.9))
    alone = [text(decoder, model, batch.row(row, "qwen2_5_vl")).tokens[0] for row in range(3)]
    assert text(decoder, model, batch).tokens == alone
