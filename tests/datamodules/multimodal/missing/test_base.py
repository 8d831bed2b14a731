"""Erasure: rates, independence, what is never erased, the same masks in any batch and on any device."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.datamodules.multimodal.batch import MODALITIES, MultimodalBatch
from saccade.datamodules.multimodal.missing.base import UNKNOWN_TOKEN, Condition, Kind, erase, take_away
from saccade.datamodules.multimodal.missing.protocols import RandomFeatureMissing, TwoTierMissing
from saccade.datamodules.multimodal.sentiment import MultimodalSentiment, derive_availability
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment
from tests.datamodules.multimodal.made_samples import (
    SAMPLES,
    erased,
    rate,
    rows,
    samples,
    with_rows_for_specials,
)

KINDS = get_args(Kind)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_realised_rate(share):
    batch = samples()
    gone = erase(batch, Condition("x", "x", rates=(share,) * 3), seed=0)
    for name in MODALITIES:
        assert rate(gone, name) == pytest.approx(share, abs=0.01)


def test_special_positions_and_padding_are_left_alone():
    batch = samples(tokens=True)
    gone = erase(batch, Condition("x", "x", rates=(1.0, 1.0, 1.0)), seed=0)
    text, before = gone.modalities["text"], batch.modalities["text"]
    assert torch.equal(text.valid, before.valid)
    assert torch.equal(text.values[text.special], before.values[text.special])
    assert bool((text.values[text.content] == UNKNOWN_TOKEN).all())
    assert torch.equal(text.values[~text.valid], before.values[~text.valid])
    assert bool((gone.modalities["audio"].values == 0).all())
    assert not gone.present.any()
    assert torch.equal(gone.observed, torch.zeros(SAMPLES, 3))
    assert gone.complete is batch


def test_audio_and_vision_lose_other_frames():
    gone = erase(samples(), Condition("x", "x", rates=(0.5,) * 3), seed=0)
    content = gone.modalities["audio"].content
    audio, vision = erased(gone, "audio")[content], erased(gone, "vision")[content]
    assert abs(np.corrcoef(audio, vision)[0, 1]) < 0.03


def test_masks_are_those_of_their_seed_in_any_batch():
    batch, condition = samples(), Condition("x", "x", rates=(0.5, 0.3, 0.7))
    whole = erase(batch, condition, seed=3)
    chosen = torch.randperm(SAMPLES)[:50]
    part = erase(rows(batch, chosen), condition, seed=3)
    other = erase(batch, condition, seed=4)
    for name in MODALITIES:
        assert torch.equal(erased(part, name), erased(whole, name)[chosen])
        assert not torch.equal(erased(other, name), erased(whole, name))


def test_what_is_gone_at_one_rate_is_gone_at_a_higher_one():
    batch = samples()
    low, high = (erase(batch, Condition("x", "x", rates=(r,) * 3), seed=0) for r in (0.3, 0.6))
    assert bool((erased(low, "vision") <= erased(high, "vision")).all())


def test_a_block_is_one_run_of_the_right_size():
    gone = erase(samples(), Condition("x", "x", rates=(0.4,) * 3, kind="block"), seed=0)
    for name in MODALITIES:
        mask = erased(gone, name).int()
        starts = (mask.diff(dim=1, prepend=mask[:, :1] * 0) == 1).sum(1)
        length = gone.modalities[name].content.sum(1)
        assert torch.equal(mask.sum(1), (0.4 * length).round().long())
        assert bool((starts == 1).all())
        # every place has its chance: one of about ten begins with the first word, one ends with the last
        content = gone.modalities[name].content
        last = length + content.int().argmax(1) - 1
        for edge in (content.int().argmax(1), last):
            assert 0.04 < float(mask[torch.arange(SAMPLES), edge].float().mean()) < 0.25


def test_same_steps_are_the_same_beside_a_cls():
    gone = erase(samples(), Condition("x", "x", rates=(0.5,) * 3, kind="same_steps"), seed=0)
    audio = erased(gone, "audio")
    assert torch.equal(audio, erased(gone, "vision"))
    assert torch.equal(audio[:, :-1], erased(gone, "text")[:, 1:])  # one later, behind [CLS]


def test_same_steps_are_the_same_where_all_have_rows_for_a_cls():
    batch = with_rows_for_specials(samples())
    gone = erase(batch, Condition("x", "x", rates=(0.5,) * 3, kind="same_steps"), seed=0)
    words = batch.modalities["text"].content
    assert not bool(batch.modalities["audio"].available[:, 0].any())
    for name in ("audio", "vision"):
        assert torch.equal(erased(gone, "text")[words], erased(gone, name)[words])
    assert rate(gone, "text") == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("rows_for_cls", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_a_same_block_takes_the_same_words_everywhere(rows_for_cls, share):
    batch = with_rows_for_specials(samples()) if rows_for_cls else samples()
    gone = erase(batch, Condition("x", "x", rates=(share,) * 3, kind="same_block"), seed=0)
    words = batch.modalities["text"].content
    lost = erased(gone, "text")
    starts = (lost.int().diff(dim=1, prepend=torch.zeros(SAMPLES, 1, dtype=torch.int)) == 1).sum(1)
    assert torch.equal(lost.sum(1), (share * words.sum(1)).round().long())
    assert bool((starts == 1).all())
    for name in ("audio", "vision"):
        if rows_for_cls:
            assert torch.equal(erased(gone, name)[words], lost[words])
        else:
            assert torch.equal(erased(gone, name)[:, :-1], lost[:, 1:])
    first = lost[torch.arange(SAMPLES), words.int().argmax(1)].float().mean()
    assert bool((first == 1) if share == 1 else (0.02 < first < 0.9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float64])
def test_masks_do_not_depend_on_the_precision(kind, precision):
    """The bench erases where the default type is the model's, as in training with bf16-true."""
    batch = samples(length=50)
    condition = Condition("x", "x", rates=(0.1, 0.3, 0.9), kind=kind, absent=(0.3, 0.2))
    protocols = (TwoTierMissing(), RandomFeatureMissing(training_rate=0.3))
    wanted = [erase(batch, condition, 3), *(protocol.training(batch, 0) for protocol in protocols)]
    torch.set_default_dtype(precision)
    try:
        found = [erase(batch, condition, 3), *(protocol.training(batch, 0) for protocol in protocols)]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(wanted, found, strict=True):
        for name in MODALITIES:
            assert torch.equal(one.modalities[name].available, other.modalities[name].available)


def test_rates_may_lie_on_another_device():
    """A protocol of one's own makes them on the CPU; the batch is elsewhere."""
    elsewhere = rows(samples(5), torch.arange(5), "meta")
    for kind in KINDS:
        gone = take_away(elsewhere, torch.full((5, 3), 0.5), torch.ones(5, 3, dtype=torch.bool), kind, spare=True)
        assert gone.modalities["text"].available.device.type == "meta"


RATES = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


@given(
    present=st.sets(st.sampled_from(MODALITIES)),
    rates=st.tuples(RATES, RATES, RATES),
    kind=st.sampled_from(KINDS),
    absent=st.sampled_from([(0.0, 0.0), (0.3, 0.2), (0.0, 1.0)]),
    tokens=st.booleans(),
    seed=st.integers(0, 99),
    order=st.permutations(range(12)),
    cut=st.integers(0, 11),
)
@settings(max_examples=60, deadline=None)
def test_any_condition_leaves_well_formed_samples(present, rates, kind, absent, tokens, seed, order, cut):
    batch = samples(12, tokens=tokens, length=20)
    condition = Condition("x", "x", present=tuple(present), rates=rates, kind=kind, absent=absent)
    gone = erase(batch, condition, seed)
    part = erase(rows(batch, torch.tensor(order[cut:])), condition, seed)
    for place, name in enumerate(MODALITIES):
        before, after = batch.modalities[name], gone.modalities[name]
        lost = erased(gone, name)
        assert torch.equal(after.valid, before.valid)
        assert torch.equal(after.available, before.available.masked_fill(lost, 0))
        assert bool((after.values[lost] == (UNKNOWN_TOKEN if before.values.dim() == 2 else 0)).all())
        assert torch.equal(after.values[~lost], before.values[~lost])
        if name not in present or rates[place] == 1:
            assert torch.equal(lost, before.content)
        elif not rates[place] and not any(absent):
            assert not bool(lost.any())
        assert torch.equal(part.modalities[name].values, after.values[order[cut:]])
        assert torch.equal(part.modalities[name].available, after.available[order[cut:]])
    assert bool(torch.isfinite(gone.observed).all())


def test_a_modality_goes_as_a_whole_and_parts_of_the_others():
    gone = erase(samples(), Condition("x", "x", present=("audio",), rates=(0.5,) * 3), seed=0)
    assert rate(gone, "text") == rate(gone, "vision") == 1
    assert rate(gone, "audio") == pytest.approx(0.5, abs=0.01)


def test_fractional_availability_survives():
    batch = samples(20)
    batch.modalities["audio"].available *= 0.25
    gone = take_away(batch, torch.full((20, 3), 0.5), torch.ones(20, 3, dtype=torch.bool))
    assert set(gone.modalities["audio"].available.unique().tolist()) == {0.0, 0.25}


def test_fewer_samples_lose_one_or_two_modalities_than_keep_all():
    gone = erase(samples(), Condition("x", "x", random=True, absent=(0.3, 0.2)), seed=0)
    lost = (~gone.present).sum(1)
    for number, share in ((0, 0.5), (1, 0.3), (2, 0.2), (3, 0.0)):
        assert float((lost == number).float().mean()) == pytest.approx(share, abs=0.05)
    assert float(gone.present.float().std(0).min()) > 0.3  # each of them, not always the same
    again = erase(samples(), Condition("x", "x", random=True, absent=(0.3, 0.2)), seed=1)
    assert not torch.equal(gone.present, again.present)


def test_sparing_leaves_a_sample_that_would_be_gone():
    batch = samples(40)
    batch.modalities["text"].available[:20] = 0  # nothing there from the beginning
    rates = torch.zeros(40, 3)
    only_text = torch.tensor([[True, False, False]]).expand(40, 3)
    spared = take_away(batch, rates, only_text, spare=True)
    assert torch.equal(spared.observed[:20], batch.observed[:20])
    assert torch.equal(spared.present[20:], only_text[20:])
    assert not take_away(batch, rates, only_text).present[:20].any()


@pytest.fixture(scope="module", params=["features", "tokens"])
def generated(request) -> MultimodalBatch:
    """Samples of the embedded data, with rows that are zero by nature."""
    data = MultimodalSentiment(generator=SyntheticSentiment(clips=(700, 10, 10)), text=request.param, batch_size=700)
    data.setup()
    return next(iter(data.train_dataloader()))


def test_rows_that_are_zero_by_nature_stay_missing(generated):
    lots = [erase(generated, Condition("x", "x", rates=(0.3,) * 3), seed) for seed in range(5)]
    for name in MODALITIES:
        before = generated.modalities[name]
        natural = before.content & (before.available == 0)
        assert bool(natural.any()) is (name != "text")
        shares = []
        for gone in lots:
            after = gone.modalities[name]
            assert bool((after.available[natural] == 0).all())
            assert torch.equal(after.values[natural], before.values[natural])
            # of what was there, the rate is taken: rows of zeros use up nothing of it
            there = before.content & ~natural
            shares.append(float((there & (after.available == 0)).sum() / there.sum()))
        assert sum(shares) / len(shares) == pytest.approx(0.3, abs=0.01)


def test_what_is_derived_is_what_was_erased(generated):
    gone = erase(generated, Condition("x", "x", rates=(0.3, 0.5, 0.7)), seed=0)
    derived = derive_availability(gone)
    for name in MODALITIES:
        assert torch.equal(derived.modalities[name].available, gone.modalities[name].available)


def test_complete_samples_are_not_changed(generated):
    before = {name: generated.modalities[name].values.clone() for name in MODALITIES}
    same = erase(generated, Condition("x", "x"), seed=0)
    erase(generated, Condition("x", "x", present=(), rates=(1.0,) * 3), seed=0)
    for name in MODALITIES:
        assert torch.equal(same.modalities[name].values, before[name])
        assert torch.equal(generated.modalities[name].values, before[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_the_same_on_a_gpu(kind):
    batch = samples()
    there = rows(batch, torch.arange(SAMPLES), "cuda")
    condition = Condition("x", "x", rates=(0.1, 0.3, 0.7), kind=kind, absent=(0.3, 0.2))
    protocol = TwoTierMissing()
    for here, on_gpu in (
        (erase(batch, condition, 3), erase(there, condition, 3)),
        (protocol.training(batch, 2), protocol.training(there, 2)),
    ):
        for name in MODALITIES:
            assert torch.equal(here.modalities[name].available, on_gpu.modalities[name].available.cpu())
            assert torch.equal(here.modalities[name].values, on_gpu.modalities[name].values.cpu())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"present": ("txt",)}, "present must be some of text, audio, vision, got ['txt']: correct the names."),
        (
            {"rates": (0.1, 0.2)},
            "rates must be three numbers between 0 and 1, got [0.1, 0.2]: correct them.",
        ),
        (
            {"rates": (0.1, 0.2, 1.1)},
            "rates must be three numbers between 0 and 1, got [0.1, 0.2, 1.1]: correct them.",
        ),
        (
            {"kind": "blok"},
            "kind must be random, block, same_steps or same_block, got 'blok': choose one of these.",
        ),
        ({"absent": (0.6, 0.6)}, "absent must be two shares with a sum of at most 1, got [0.6, 0.6]: lower them."),
    ],
)
def test_a_wrong_condition_is_one_line(settings, said):
    with pytest.raises(ValueError) as caught:
        Condition("x", "x", **settings)
    assert str(caught.value) == said
