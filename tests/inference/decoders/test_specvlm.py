"""SpecVLM writes what its target writes, from any part of the video; its caches, trees and sampling law are exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopKLogitsWarper

from saccade.inference import Sampling, SpecVLM, TokenTree
from saccade.inference.drafting.static_trees import StaticTree
from saccade.inference.reduction.selectors import SELECTORS
from tests.inference.sampling_law import deviation
from tests.support.verifiers import GreedyBonus, judged_by
from tests.support.video_checks import (
    Keeping,
    Stock,
    VideoAudit,
    asked,
    padded_on_the_right,
    stock_tokens,
    video_draft_model,
    video_model,
)
from tests.support.video_models import END, FAMILIES, VideoPrompts, video_prompts

GRIDDED = {"whole_frames", "frame_similarity", "temporal"}  # LLaVA-OneVision's videos have no grid of tokens
OWN_TREE = [[0], [1], [2], [0, 0], [1, 0], [1, 1], [1, 1, 0]]


def uncaptured(decoder: SpecVLM) -> SpecVLM:
    """The decoder on the graphs' steps, run one by one on a processor."""
    vars(decoder).pop("_pool", None)
    decoder.engine = "graph"
    decoder.pool.uncaptured = True
    return decoder


def ending_apart(free: list[list[int]]) -> list[int]:
    """EOS ids that end the first row in its middle and the last one later; both are words that the target writes."""
    return [next(token for token in free[row][start:] if token > END) for row, start in ((0, 4), (-1, 7))]


@cache
def right_texts(family: str, seed: int, rows: int, new: int, weights: int = 0) -> list[list[int]]:
    model, prompts = video_model(family, weights), video_prompts(family, rows=rows, seed=seed)
    return stock_tokens(model, prompts, family, new)


def ending(texts: list[list[int]], eos: Sequence[int]) -> list[list[int]]:
    """The texts, each up to its first EOS."""
    ends = [next((at for at, token in enumerate(text) if token in eos), len(text)) for text in texts]
    return [text[: end + 1] for text, end in zip(texts, ends, strict=True)]


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_selector_is_lossless(family: str, selector: str) -> None:
    if family == "llava_onevision" and selector in GRIDDED:
        pytest.skip("its videos have no grid")
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=2)
    eos = ending_apart(right_texts(family, 2, 3, 14))
    right = ending(right_texts(family, 2, 3, 14), eos)
    assert len({len(row) for row in right}) > 1  # rows end at different times
    decoder = SpecVLM(selector=selector, prune_ratio=0.6)
    for prompt in (prompts, padded_on_the_right(prompts)):
        out = decoder.generate(model, **asked(prompt), max_new_tokens=14, eos_token_id=eos)
        assert out.tokens == right
        assert out.stats.drafted > 0
        assert out.audit == [[], [], []]
        decoder = uncaptured(decoder)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("two_models", [False, True])
@pytest.mark.parametrize("tree", ["default", "chain", OWN_TREE], ids=["default", "chain", "own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tree_is_lossless(family: str, tree: str | list[list[int]], two_models: bool, positions: Any) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=3)
    draft = video_draft_model(family) if two_models else None
    for ratio in (0.9, 1.0):  # with 1.0 nothing of the video is kept
        decoder = SpecVLM(draft_model=draft, prune_ratio=ratio, tree=tree, positions=positions)
        decoder = uncaptured(decoder) if ratio == 1.0 else decoder
        out = decoder.generate(model, **asked(prompts), max_new_tokens=15)
        assert out.tokens == right_texts(family, 3, 3, 15)
        assert out.stats.accepted > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_any_kept_set_is_lossless_on_many_seeds(family: str) -> None:
    accepted = 0
    for seed in range(12):
        model, prompts = video_model(family, seed % 3), video_prompts(family, rows=2, seed=seed)
        decoder = SpecVLM(
            draft_model=video_draft_model(family, seed % 3) if seed % 2 else None,
            selector=Keeping(seed),
            tree="chain" if seed % 4 < 2 else OWN_TREE,
        )
        out = decoder.generate(model, **asked(prompts), max_new_tokens=10)
        assert out.tokens == right_texts(family, seed, 2, 10, seed % 3)
        accepted += out.stats.accepted
    assert accepted > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perfect_draft_is_accepted_whole(family: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=4)
    for tree, draft in itertools.product(("default", "chain"), (None, model)):
        decoder = SpecVLM(draft_model=draft, prune_ratio=0.0, tree=tree)
        out = decoder.generate(model, **asked(prompts), max_new_tokens=1 + 3 * 6)
        # five drafts and the bonus token in every round, of both rows
        assert out.stats.acceptance_histogram == {5: 6}
        assert out.stats.mean_accepted_draft_tokens == 5
        # a limit in the middle of a round cuts the tree and nothing else
        out = decoder.generate(model, **asked(prompts), max_new_tokens=1 + 6 + 3)
        assert out.stats.acceptance_histogram == {2: 2, 5: 2}


@pytest.mark.parametrize("tree", ["default", "chain"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("two_models", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_caches_after_every_round(family: str, two_models: bool, positions: Any, tree: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=3, seed=5)
    eos = ending_apart(right_texts(family, 5, 3, 12))
    draft = video_draft_model(family) if two_models else None
    decoder = SpecVLM(draft_model=draft, prune_ratio=0.7, positions=positions, tree=tree)
    audit = VideoAudit(decoder, model, prompts, family)
    out = decoder.generate(model, **asked(prompts), max_new_tokens=12, eos_token_id=eos)
    assert out.tokens == ending(right_texts(family, 5, 3, 12), eos)
    assert audit.rounds >= 3
    assert audit.catch_ups >= 3
    assert audit.rejections > 0
    for row, kept in audit.selector.kept.items():
        assert len(kept) == int(0.3 * len(audit.targets[row].visual) + 1e-9)


@pytest.mark.parametrize("engine", ["eager", "uncaptured"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_node_of_every_tree_is_its_path_read_alone(family: str, engine: str) -> None:
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=6)
    decoder = SpecVLM(draft_model=video_draft_model(family), prune_ratio=0.5)
    decoder = uncaptured(decoder) if engine == "uncaptured" else decoder
    audit = VideoAudit(decoder, model, prompts, family, trees=True)
    decoder.generate(model, **asked(prompts), max_new_tokens=12)
    # whole trees: 26 nodes of the target; 5, 9, 10 and 11 that the draft runs behind its first forward
    assert audit.nodes >= 2 * 26
    assert audit.draft_nodes >= 2 * (5 + 9 + 10 + 11)


def seeing(tree: TokenTree, rows: Sequence[int]) -> TokenTree:
    """The tree with a wrong mask: some nodes see everything before them."""
    planted = TokenTree(tree.parents)
    mask = tree.attention_mask.clone()
    mask[list(rows)] = torch.ones_like(mask).tril()[list(rows)]
    vars(planted)["attention_mask"] = mask
    return planted


def test_a_draft_that_sees_its_siblings_is_found_and_changes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code masks nothing where a level runs a single node: drafts of depth 4 and 5 see all branches."""
    family = "qwen2_5_vl"
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=6)
    partial = StaticTree.partial

    def released(shape: StaticTree, level: int) -> TokenTree:
        tree = partial(shape, level)
        return seeing(tree, [len(tree) - 1]) if len(shape.inner[level]) == 1 and level else tree

    monkeypatch.setattr(StaticTree, "partial", released)
    right = right_texts(family, 6, 2, 12)
    assert SpecVLM(prune_ratio=0.5).generate(model, **asked(prompts), max_new_tokens=12).tokens == right
    decoder = SpecVLM(prune_ratio=0.5)
    VideoAudit(decoder, model, prompts, family, trees=True)
    with pytest.raises(AssertionError):
        decoder.generate(model, **asked(prompts), max_new_tokens=12)


def test_a_target_that_sees_its_siblings_is_found() -> None:
    family = "llava_onevision"
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=6)
    decoder = SpecVLM(prune_ratio=0.5)
    decoder._shape = StaticTree()
    vars(decoder._shape)["tree"] = seeing(decoder._shape.tree, range(26))
    VideoAudit(decoder, model, prompts, family, trees=True)
    with pytest.raises(AssertionError):
        decoder.generate(model, **asked(prompts), max_new_tokens=12)


def sampled_law(model: PreTrainedModel, prompt: VideoPrompts, sampling: Sampling) -> dict[tuple[int, int, int], float]:
    """Probability of every continuation of three tokens, with transformers' own warpers."""
    stock = Stock(model, prompt)
    law = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, chance in law.items():
            scores = TemperatureLogitsWarper(sampling.temperature)(None, stock.read(text)[0][-1:])
            odds = TopKLogitsWarper(sampling.top_k)(None, scores).softmax(-1)[0]
            longer |= {(*text, token): chance * float(odds[token]) for token in odds.nonzero()[:, 0].tolist()}
        law = longer
    return law


@pytest.mark.parametrize(("kind", "found"), [(SpecVLM, False), (judged_by(GreedyBonus, SpecVLM), True)])
def test_sampling_keeps_the_targets_law(kind: type[SpecVLM], found: bool) -> None:
    family, rows = "qwen2_5_vl", 1000
    model, prompt = video_model(family), video_prompts(family, seed=7)
    visual = {"pixel_values_videos": prompt.visual["pixel_values_videos"].repeat(rows, 1)}
    visual["video_grid_thw"] = prompt.visual["video_grid_thw"].repeat(rows, 1)
    # transformers' own default has one for each token of the longest prompt, and these rows are more
    visual["second_per_grid_ts"] = torch.ones(rows)
    law = sampled_law(model, prompt, Sampling(1.5, top_k=3))
    assert abs(sum(law.values()) - 1) < 1e-9
    texts = {text: index for index, text in enumerate(law)}
    counts = torch.zeros(len(law), dtype=torch.float64)
    decoder = kind(prune_ratio=0.5, tree=[[0], [1], [0, 0], [0, 1]])
    for seed in range(1 if found else 3):
        sampling = Sampling(1.5, top_k=3, seed=seed)
        out = decoder.generate(model, prompt.input_ids.repeat(rows, 1), **visual, max_new_tokens=3, sampling=sampling)
        assert 0 < out.stats.draft_acceptance_rate < 1
        for tokens in out.tokens:
            counts[texts[tuple(tokens)]] += 1  # a text that cannot be is a KeyError
    assert (abs(deviation(counts, torch.tensor(list(law.values()), dtype=torch.float64))) > 4) == found
