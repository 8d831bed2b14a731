"""Which video tokens stay: golden vectors, properties of the two-stage selection, and every selector."""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor

from saccade.inference.reduction.selector import (
    VideoSelector,
    VideoView,
    default_mass,
    evenly_spaced,
    two_stage_selection,
    video_budget,
)
from saccade.inference.reduction.selectors import (
    SELECTORS,
    FrameSimilarity,
    NoPruning,
    RandomTokens,
    ReversedAttention,
    TemporalMerge,
    TwoStage,
    Uniform,
    WholeFrames,
    Window,
    make_selector,
)

PEAKS = torch.ones(20).index_put((torch.tensor([0, 4, 9]),), torch.tensor([10.0, 8.0, 6.0]))
RATIOS = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@pytest.mark.parametrize(
    ("scores", "ratio", "mass", "released", "keep"),
    [
        (PEAKS, 0.5, 0.4, False, [0, 1, 3, 4, 6, 9, 11, 14, 16, 19]),
        (PEAKS, 0.5, 0.4, True, [0, 1, 3, 4, 6, 9, 11, 14, 16, 19]),
        (PEAKS, 0.9, 0.4, True, [0]),
        (PEAKS, 0.9, 0.4, False, [0, 4]),  # an exact budget of 2, of which stage I needs both
        (torch.arange(16.0), 0.5, 0.4, False, [0, 3, 7, 11, 12, 13, 14, 15]),
        (torch.ones(12), 0.75, 0.4, False, [0, 1, 2]),
        (torch.ones(8), 0.0, 0.4, False, list(range(8))),
        (torch.ones(8), 0.0, 1.0, False, list(range(8))),
        (torch.ones(8), 0.0, 1.0, True, list(range(8))),  # where the released code ends with a TypeError
        (torch.ones(8), 1.0, 0.4, False, []),
        (torch.ones(0), 0.5, None, False, []),
        (torch.ones(10), 0.2, 0.5, False, [0, 1, 2, 3, 4, 5, 7, 9]),  # five tokens reach one half exactly
    ],
)
def test_golden_vectors(scores: Tensor, ratio: float, mass: float | None, released: bool, keep: list[int]) -> None:
    chosen = two_stage_selection(scores, ratio, mass, released=released)
    assert chosen.dtype == torch.long
    assert chosen.tolist() == keep


@pytest.mark.parametrize(
    ("tokens", "exact", "released"),
    [(1000, 100, 99), (100, 10, 9), (20, 2, 1), (12545, 1254, 1254), (16384, 1638, 1638)],
)
def test_the_budget_is_exact_on_decimals(tokens: int, exact: int, released: int) -> None:
    assert video_budget(tokens, 0.9) == exact
    assert video_budget(tokens, 0.9, released=True) == released


@given(st.integers(0, 20000), st.integers(0, 1000))
def test_the_budget_is_the_floor_of_what_remains(tokens: int, thousandths: int) -> None:
    assert video_budget(tokens, thousandths / 1000) == tokens * (1000 - thousandths) // 1000
    assert abs(video_budget(tokens, thousandths / 1000, released=True) - video_budget(tokens, thousandths / 1000)) <= 1


@pytest.mark.parametrize(("count", "picks", "chosen"), [(10, 4, [0, 3, 6, 9]), (17, 7, [0, 2, 5, 8, 10, 13, 16])])
@pytest.mark.parametrize("released", [False, True])
def test_even_spacing_by_example(count: int, picks: int, chosen: list[int], released: bool) -> None:
    assert evenly_spaced(count, picks, released).tolist() == chosen


@given(st.integers(0, 500), st.data(), st.booleans())
def test_even_spacing_hits_both_ends_and_has_equal_gaps(count: int, data: st.DataObject, released: bool) -> None:
    picks = data.draw(st.integers(0, count))
    chosen = evenly_spaced(count, picks, released).tolist()
    assert len(chosen) == picks
    if picks:
        assert chosen[0] == 0
    if picks > 1:
        assert chosen[-1] == count - 1
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1
    if not released:
        assert chosen == [i * (count - 1) // (picks - 1) if picks > 1 else 0 for i in range(picks)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=120), RATIOS, RATIOS.filter(bool), st.booleans())
def test_two_stages(values: list[int], ratio: float, mass: float, released: bool) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    keep = two_stage_selection(scores, ratio, mass, released=released).tolist()
    budget = video_budget(len(values), ratio, released)
    assert len(keep) == budget
    assert keep == sorted(set(keep))
    assert all(0 <= index < len(values) for index in keep)
    # stage I, written down again in exact numbers: the shortest prefix of the ranking that has the mass
    ranking = sorted(range(len(values)), key=lambda index: (-values[index], index))
    goal, held, first = Fraction(mass) * sum(values), Fraction(0), 0
    while first < len(values) and (held < goal or first == 0):
        held += values[ranking[first]]
        first += 1
    if abs(held - goal) < 1e-9 * goal or abs(held - values[ranking[first - 1]] - goal) < 1e-9 * goal:
        return  # a tie with the goal that rounding may decide either way
    stage_one = ranking[: min(first, budget)]
    assert set(stage_one) <= set(keep)
    if first < budget:  # stage II is even over the others
        others = [index for index in range(len(values)) if index not in set(stage_one)]
        places = [others.index(index) for index in keep if index not in set(stage_one)]
        assert places == evenly_spaced(len(others), budget - first, released).tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), RATIOS, st.floats(0.125, 64))
def test_only_the_ratios_of_scores_matter(values: list[int], ratio: float, scale: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    power = 2.0 ** math.floor(math.log2(scale))  # scales without rounding
    assert torch.equal(two_stage_selection(scores, ratio), two_stage_selection(scores * power, ratio))
    assert torch.equal(two_stage_selection(scores, ratio), two_stage_selection(scores.half(), ratio))


@given(st.integers(1, 100), RATIOS)
def test_nothing_pruned_is_the_identity_for_every_mass(tokens: int, mass: float) -> None:
    scores = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens))
    assert torch.equal(two_stage_selection(scores, 0.0, mass), torch.arange(tokens))


def test_the_mass_follows_the_ratio() -> None:
    assert [default_mass(ratio) for ratio in (0.5, 0.75, 0.76, 0.9)] == [0.5, 0.5, 0.4, 0.4]
    # 2 of 20 hold 40 %, 3 of 20 hold 50 %: the third peak comes in by attention only under the larger mass
    keep = two_stage_selection(PEAKS, 0.75)
    assert torch.equal(keep, two_stage_selection(PEAKS, 0.75, 0.5))
    assert not torch.equal(keep, two_stage_selection(PEAKS, 0.75, 0.4))


def test_sixteen_thousand_scores_take_milliseconds() -> None:
    scores = torch.rand(16384, generator=torch.Generator().manual_seed(0)) ** 8
    two_stage_selection(scores, 0.9)
    begin = time.perf_counter()
    for _ in range(5):
        two_stage_selection(scores, 0.9)
    assert (time.perf_counter() - begin) / 5 < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_choose_the_same() -> None:
    scores = torch.randint(0, 40, (12545,), generator=torch.Generator().manual_seed(0)).float()
    keep = two_stage_selection(scores.cuda(), 0.9)
    assert keep.is_cuda
    assert torch.equal(keep.cpu(), two_stage_selection(scores, 0.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_scores_that_are_no_attention(bad: float) -> None:
    with pytest.raises(ValueError, match="scores must be finite"):
        two_stage_selection(torch.tensor([1.0, bad]), 0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_ratios_outside_their_range(ratio: float) -> None:
    with pytest.raises(ValueError, match="prune_ratio must be between 0 and 1"):
        video_budget(10, ratio)
    for kind in set(SELECTORS.values()) - {NoPruning}:
        with pytest.raises(ValueError, match="prune_ratio must be between 0 and 1"):
            kind(prune_ratio=ratio)  # type: ignore[call-arg]


def test_other_wrong_settings() -> None:
    with pytest.raises(ValueError, match="mass"):
        two_stage_selection(PEAKS, 0.5, 1.5)
    with pytest.raises(ValueError, match="mass"):
        TwoStage(mass=-0.1)
    with pytest.raises(ValueError, match="one dimension"):
        two_stage_selection(torch.ones(2, 3), 0.5)
    with pytest.raises(ValueError, match="place must be one of front, middle, back"):
        Window(place="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="selector must be one of none, random"):
        make_selector("best", 0.9)
    with pytest.raises(ValueError, match="picks"):
        evenly_spaced(3, 4)
    with pytest.raises(ValueError, match="tokens"):
        video_budget(-1, 0.5)
    for wrong in (
        {"tokens": 3, "scores": torch.ones(4)},
        {"tokens": 3, "features": torch.ones(4, 2)},
        {"tokens": 3, "grid": (2, 1, 2)},
        {"tokens": 3, "grid": (0, 1, 2)},
        {"tokens": -1},
    ):
        with pytest.raises(ValueError, match=list(wrong)[-1]):
            VideoView(**wrong)  # type: ignore[arg-type]


def view(frames: int = 6, side: int = 4, newline: int = 1, row: int = 0, seed: int = 0) -> VideoView:
    """A video of random tokens; ``newline`` tokens stand behind its grid."""
    generator = torch.Generator().manual_seed(seed)
    tokens = frames * side * side + newline
    scores = torch.rand(tokens, generator=generator)
    features = torch.randn(tokens, 8, generator=generator)
    return VideoView(tokens, scores, (frames, side, side), features, row=row)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_some_tokens_in_order(name: str, ratio: float) -> None:
    selector = make_selector(name, ratio)
    video = view()
    keep = selector.select(video)
    assert keep.dtype == torch.long
    assert keep.device.type == "cpu"
    assert keep.tolist() == sorted(set(keep.tolist()))
    assert all(0 <= index < video.tokens for index in keep.tolist())
    assert torch.equal(keep, selector.select(video))
    if selector.budgeted:
        assert len(keep) == video_budget(video.tokens, selector.prune_ratio)  # type: ignore[attr-defined]
    if ratio == 0 and name != "temporal":
        assert len(keep) == video.tokens


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_says_what_it_needs(name: str) -> None:
    selector = make_selector(name, 0.5)
    full = view()
    parts = {"scores": full.scores, "grid": full.grid, "features": full.features}
    needed = {part: value for part, value in parts.items() if getattr(selector, f"needs_{part}")}
    expected = selector.select(full)
    assert torch.equal(selector.select(VideoView(full.tokens, **needed)), expected)  # type: ignore[arg-type]
    for missing in needed:
        rest = {part: value for part, value in needed.items() if part != missing}
        with pytest.raises(ValueError, match=f"{missing} must be given for this selector"):
            selector.select(VideoView(full.tokens, **rest))  # type: ignore[arg-type]


def test_selectors_by_name() -> None:
    assert list(SELECTORS) == [
        *("none", "random", "uniform", "window", "attention", "attention_reversed", "two_stage"),
        *("whole_frames", "frame_similarity", "temporal"),
    ]
    assert make_selector("two_stage", 0.8) == TwoStage(0.8)
    assert make_selector("none", 0.8) == NoPruning()
    own = Window(0.5, "back")
    assert make_selector(own, 0.9) is own
    assert all(issubclass(kind, VideoSelector) for kind in SELECTORS.values())


def test_selectors_are_reached_from_settings() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--selector", type=VideoSelector | str)
    settings = {"class_path": "saccade.inference.reduction.selectors.Window", "init_args": {"place": "back"}}
    made = [parser.instantiate(parser.parse_object({"selector": given})) for given in (settings, "uniform")]
    assert made[0].selector == Window(place="back")
    assert made[1].selector == "uniform"


def test_random_depends_on_seed_and_row_alone() -> None:
    video = view(frames=30)
    base = RandomTokens(0.5, seed=1).select(video)
    assert torch.equal(base, RandomTokens(0.5, seed=1).select(view(frames=30, seed=9)))
    assert not torch.equal(base, RandomTokens(0.5, seed=2).select(video))
    assert not torch.equal(base, RandomTokens(0.5, seed=1).select(view(frames=30, row=1)))
    counts = torch.zeros(12)
    for seed in range(2000):
        counts[RandomTokens(0.75, seed).select(VideoView(12))] += 1
    # 3 of 12 tokens, 2000 times: each is kept 500 times on average, with a standard deviation of 19
    assert (counts - 500).abs().max() < 97


@pytest.mark.parametrize(("place", "keep"), [("front", [0, 1, 2]), ("middle", [3, 4, 5]), ("back", [7, 8, 9])])
def test_windows(place: str, keep: list[int]) -> None:
    assert Window(0.7, place).select(VideoView(10)).tolist() == keep  # type: ignore[arg-type]


def test_attention_and_its_reverse() -> None:
    video = VideoView(6, torch.tensor([3.0, 1.0, 2.0, 3.0, 1.0, 0.0]))
    assert make_selector("attention", 0.5).select(video).tolist() == [0, 2, 3]
    assert ReversedAttention(0.5).select(video).tolist() == [1, 4, 5]
    ties = VideoView(5, torch.ones(5))
    assert make_selector("attention", 0.6).select(ties).tolist() == [0, 1]
    assert ReversedAttention(0.6).select(ties).tolist() == [0, 1]


def test_the_second_stage_alone_is_uniform() -> None:
    # with flat scores of a mass that one token holds, stage I takes the first token and stage II spreads over the rest
    assert Uniform(0.5).select(VideoView(10)).tolist() == [0, 2, 4, 6, 9]
    assert two_stage_selection(torch.ones(10), 0.5, 0.0).tolist() == [0, 1, 3, 6, 9]


def test_whole_frames() -> None:
    video = view(frames=5, side=2)
    keep = WholeFrames(0.5).select(video).tolist()  # floor(2.5) = 2 frames, the first and the last
    assert keep == [0, 1, 2, 3, 16, 17, 18, 19, 20]
    assert WholeFrames(0.99).select(video).tolist() == [0, 1, 2, 3, 20]


def test_frames_that_repeat_the_one_before_are_dropped() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(6, 4, 16, generator=generator)
    frames[2] = frames[1] + 0.01 * torch.randn(4, 16, generator=generator)
    frames[5] = 3 * frames[4]  # the cosine does not see lengths
    video = VideoView(24, grid=(6, 2, 2), features=frames.flatten(0, 1))
    keep = FrameSimilarity(0.4).select(video)  # floor(2.4) = 2 frames go
    assert sorted({index // 4 for index in keep.tolist()}) == [0, 1, 3, 4]
    assert len(keep) == 16


def test_of_four_frames_one_is_kept_whole_and_of_the_others_what_changed() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 8, 16, generator=generator).repeat(6, 1, 1)
    frames[1, 3] *= -1  # differs from frame 0
    frames[2, 5] *= -1  # differs from frame 0
    frames[3, 5] *= -1  # the same as frame 2: no change
    frames[3, 6] += torch.randn(16, generator=generator)  # differs a little from frame 2
    frames[5, 2] *= -1  # differs from frame 4, the first of the next group
    video = VideoView(49, grid=(6, 2, 4), features=torch.cat([frames.flatten(0, 1), torch.ones(1, 16)]))
    keep = set(TemporalMerge(0.8).select(video).tolist())  # floor(0.75 * 0.2 * 8) = 1 token of each other frame
    whole = {*range(8), *range(32, 40)}
    assert keep == whole | {8 + 3, 16 + 5, 24 + 6, 40 + 2, 48}


def test_the_temporal_ablation_keeps_thirty_percent_at_ninety() -> None:
    keep = TemporalMerge(0.9).select(view(frames=8, side=14, newline=0))
    assert len(keep) == 2 * (196 + 3 * 14)
