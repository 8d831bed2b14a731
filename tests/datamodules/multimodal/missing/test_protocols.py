"""Protocols: rates, what stays, fresh draws, traps of released loaders, settings."""

from pathlib import Path

import pytest
import torch
import yaml

import saccade.configs
from saccade.datamodules.multimodal.batch import MODALITIES
from saccade.datamodules.multimodal.missing import protocols
from saccade.datamodules.multimodal.missing.base import PATTERNS, erase
from saccade.datamodules.multimodal.missing.protocols import (
    CiderMissing,
    FixedModalityMissing,
    FrameDrop,
    NothingMissing,
    PatternDropout,
    RandomFeatureMissing,
    RandomModalityMissing,
    RandomRateMissing,
    RateTriples,
    TwoTierMissing,
)
from saccade.datamodules.multimodal.missing.shares import assign_patterns, shares_of
from tests.datamodules.multimodal.made_samples import SAMPLES, erased, rows, samples

EVERY = [
    NothingMissing(), TwoTierMissing(), RandomFeatureMissing(), RandomRateMissing(), RandomModalityMissing(),
    FixedModalityMissing(), FrameDrop(), PatternDropout(), RateTriples(),
    *(CiderMissing(kind=kind) for kind in ("rmfm", "rmfm_same", "rmm", "tmfm", "stmfm")),
]  # fmt: skip


@pytest.mark.parametrize("protocol", EVERY, ids=lambda item: type(item).__name__)
def test_every_protocol_is_well_formed(protocol):
    batch = samples(200, tokens=True)
    protocol.prepare(batch.key, "train")
    for made in (protocol.training(batch, 0), protocol.validation(batch)):
        for name in MODALITIES:
            before, after = batch.modalities[name], made.modalities[name]
            assert torch.equal(before.valid, after.valid)
            assert bool((after.available <= before.available).all())
            assert bool((after.available[after.special] == 1).all())
    again, same = protocol.validation(batch), protocol.validation(batch)
    assert torch.equal(again.observed, same.observed)
    conditions = protocol.conditions()
    assert len({(item.group, item.name) for item in conditions}) == len(conditions)


@pytest.mark.parametrize(
    "protocol",
    [
        TwoTierMissing(), RandomRateMissing(), PatternDropout(), FrameDrop(), RateTriples(), FixedModalityMissing(),
        *(CiderMissing(kind=kind) for kind in ("rmfm", "rmfm_same", "rmm", "tmfm")),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_training_draws_anew_in_every_epoch(protocol):
    batch = samples()
    assert not torch.equal(protocol.training(batch, 0).observed, protocol.training(batch, 1).observed)


@pytest.mark.parametrize(
    "protocol",
    [
        TwoTierMissing(), RandomRateMissing(), FixedModalityMissing(), FrameDrop(), PatternDropout(), RateTriples(),
        CiderMissing(kind="rmfm"), CiderMissing(kind="rmm", training_rate=0.9),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_something_stays_in_training(protocol):
    batch = samples(length=12)
    batch.modalities["vision"].available[:300] = 0  # no face was found
    for epoch in range(5):
        made = protocol.training(batch, epoch)
        assert bool(made.present.any(1).all())
        assert float(made.observed.mean()) < 0.95 * float(batch.observed.mean())


@pytest.mark.parametrize("protocol", EVERY, ids=lambda item: type(item).__name__)
def test_training_is_the_same_in_any_batch(protocol):
    batch = samples(120)
    protocol.prepare(batch.key, "train")
    whole, chosen = protocol.training(batch, 3), torch.randperm(120)[:17]
    part = protocol.training(rows(batch, chosen), 3)
    for name in MODALITIES:
        assert torch.equal(part.modalities[name].available, whole.modalities[name].available[chosen])
        assert torch.equal(part.modalities[name].values, whole.modalities[name].values[chosen])


@pytest.mark.parametrize("protocol", EVERY, ids=lambda item: type(item).__name__)
def test_conditions_say_truly_what_is_random(protocol):
    batch = samples(200)
    for condition in protocol.conditions():
        one, other = erase(batch, condition, 0), erase(batch, condition, 1)
        same = all(torch.equal(erased(one, name), erased(other, name)) for name in MODALITIES)
        assert same is not condition.random, condition


@pytest.mark.parametrize(
    "protocol", [CiderMissing(kind="stmfm"), CiderMissing(kind="tmfm")], ids=lambda item: item.kind
)
def test_blocks_and_steps_move_from_epoch_to_epoch(protocol):
    batch = samples()
    one, other = protocol.training(batch, 0), protocol.training(batch, 1)
    for name in MODALITIES:
        assert not torch.equal(erased(one, name), erased(other, name))


@pytest.mark.parametrize(
    "protocol",
    [
        TwoTierMissing(), RandomFeatureMissing(), RandomRateMissing(), FrameDrop(), RateTriples(),
        CiderMissing(kind="rmfm"), CiderMissing(kind="rmfm_same"),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_audio_and_vision_lose_parts_by_themselves(protocol):
    """Beyond what a sample's rates explain; equal seeds for all modalities, the field's trap, give 1."""
    batch, parts = samples(length=50), {"audio": [], "vision": []}
    for epoch in range(6):
        made = protocol.training(batch, epoch)
        partly = ((made.observed > 0) & (made.observed < 1))[:, 1:].all(1)
        content = made.modalities["audio"].content[partly]
        for place, (name, found) in enumerate(parts.items(), 1):
            share = 1 - made.observed[partly, place]
            found.append((erased(made, name)[partly].float() - share[:, None])[content])
    audio, vision = (torch.cat(found) for found in parts.values())
    assert len(audio) > 10000
    assert abs(float((audio * vision).mean() / (audio.std() * vision.std()))) < 0.03


def test_ours_trains_on_both_kinds():
    batch = samples()
    made = TwoTierMissing().training(batch, 0)
    whole = made.present.all(1).float().mean()
    assert float(whole) == pytest.approx(0.465, abs=0.05)  # 0.5, but for those that lost all frames of a modality
    untouched = (made.observed[made.present] == 1).float().mean()
    # 0.5, and what a small rate did not hit; without what a large one took altogether
    assert float(untouched) == pytest.approx(0.55, abs=0.04)


def test_ours_has_the_five_tests():
    counts = {}
    for condition in TwoTierMissing().conditions():
        counts[condition.group] = counts.get(condition.group, 0) + 1
    assert counts == {"intra": 10, "inter": 7, "mixed": 24, "block": 3, "unbalanced": 6}
    assert {item.group for item in TwoTierMissing(tests=["A", "D"]).conditions()} == {"intra", "block"}


def test_half_of_the_samples_keep_a_modality_under_random_rates():
    made = RandomRateMissing().training(samples(), 0)
    for place in range(3):
        assert float((made.observed[:, place] == 1).float().mean()) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("sampler", ["gcnet", "imder"])
@pytest.mark.parametrize("wanted", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_modality_rates_are_met(sampler, wanted):
    kept = assign_patterns(samples().key, wanted, sampler, seed=0)
    assert bool(kept.any(1).all())
    assert 1 - float(kept.float().mean()) == pytest.approx(min(wanted, 2 / 3), abs=0.005)


@pytest.mark.parametrize("sampler", ["gcnet", "imder", "independent"])
@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.3, 0.5, 0.62, 0.68, 0.7])
def test_the_test_draws_what_training_has(sampler, wanted):
    one, two = shares_of(wanted, sampler)
    lost = (~assign_patterns(torch.arange(20000), wanted, sampler, seed=0)).sum(1)
    assert float((lost == 1).float().mean()) == pytest.approx(one, abs=0.012)
    assert float((lost == 2).float().mean()) == pytest.approx(two, abs=0.012)
    if sampler != "independent":
        assert (one + 2 * two) / 3 == pytest.approx(min(wanted, 2 / 3), abs=1e-9)
    condition = RandomModalityMissing(rate=wanted, sampler=sampler).conditions()[0]
    seen = torch.cat([erase(samples(), condition, seed).present for seed in range(5)])
    assert bool(seen.any(1).all())
    assert 1 - float(seen.float().mean()) == pytest.approx((one + 2 * two) / 3, abs=0.015)


@pytest.mark.parametrize(("wanted", "known"), [(0.5, 0.459), (0.6, 0.528), (0.7, 0.585)])
def test_independent_dropping_misses_the_rate(wanted, known):
    kept = assign_patterns(torch.arange(20000), wanted, "independent", seed=0)
    assert 1 - float(kept.float().mean()) == pytest.approx(known, abs=0.02)


def test_assigned_patterns_serve_all_splits():
    batch = samples()
    protocol = RandomModalityMissing(rate=0.5)
    protocol.prepare(batch.key[:400], "train")
    protocol.prepare(batch.key[400:], "valid")
    made = protocol.training(rows(batch, torch.arange(SAMPLES).flip(0)), 0)
    assert 1 - float(made.present.float().mean()) == pytest.approx(0.5, abs=0.005)
    with pytest.raises(ValueError, match=r"prepare\(keys, split\)"):
        RandomModalityMissing().training(batch, 0)


def test_same_frames_in_every_epoch_where_the_field_draws_once():
    batch = samples()
    protocol = RandomFeatureMissing(training_rate=0.4)
    assert torch.equal(protocol.training(batch, 0).observed, protocol.training(batch, 7).observed)
    assert float(protocol.training(batch, 0).observed.mean()) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    ("kind", "erasure"), [("rmfm", "random"), ("rmfm_same", "random"), ("tmfm", "same_steps"), ("stmfm", "same_block")]
)
def test_cider_trains_and_tests_the_same_kind(kind, erasure):
    protocol = CiderMissing(kind=kind, training_rate=0.5)
    assert {condition.kind for condition in protocol.conditions()} == {erasure}
    made = protocol.training(samples(), 0)
    audio, vision = erased(made, "audio"), erased(made, "vision")
    assert torch.equal(audio, vision) is (kind in ("tmfm", "stmfm"))
    runs = (audio.int().diff(dim=1, prepend=torch.zeros(SAMPLES, 1, dtype=torch.int)) == 1).sum(1)
    assert (int(runs.max()) == 1) is (kind == "stmfm")
    assert float(audio.sum() / made.modalities["audio"].content.sum()) == pytest.approx(0.5, abs=0.04)
    rates = made.modalities["audio"].observed
    assert (float(rates.std()) > 0.2) is (kind == "rmfm")


@pytest.mark.parametrize("chance", [0.3, 0.9])
def test_cider_gives_one_modality_back_where_all_would_go(chance):
    lost = (~CiderMissing(kind="rmm", training_rate=chance).training(samples(), 0).present).sum(1)
    for number, share in enumerate(shares_of(chance, "independent"), 1):
        assert float((lost == number).float().mean()) == pytest.approx(share, abs=0.06)


def test_patterns_are_dropped_at_their_rate():
    kept = PatternDropout(drop_rate=0.7).training(samples(), 0).present
    assert float(kept.all(1).float().mean()) == pytest.approx(0.3, abs=0.06)
    for pattern in PATTERNS:
        wanted = torch.tensor([name in pattern for name in MODALITIES])
        assert float((kept == wanted).all(1).float().mean()) == pytest.approx(0.7 / 6, abs=0.04)


def test_fixed_modalities_train_on_complete_data_if_asked():
    batch = samples(50)
    made = FixedModalityMissing(training_patterns="complete").training(batch, 0)
    assert torch.equal(made.observed, batch.observed)


def test_fixed_modalities_validate_on_all_patterns_always():
    batch = samples()
    made = FixedModalityMissing(training_patterns="complete").validation(batch)
    assert torch.equal(made.present, FixedModalityMissing(training_patterns="all").validation(batch).present)
    for pattern in (*PATTERNS, MODALITIES):
        wanted = torch.tensor([name in pattern for name in MODALITIES])
        assert float((made.present == wanted).all(1).float().mean()) == pytest.approx(1 / 7, abs=0.04)


def test_triples_leave_half_clean_and_never_take_everything():
    made = RateTriples().training(samples(), 0)
    assert float((made.observed == 1).all(1).float().mean()) == pytest.approx(0.5, abs=0.07)
    assert bool(made.present.any(1).all())


def test_patterns_are_the_six():
    assert len(set(PATTERNS)) == 6
    assert [item.present for item in FixedModalityMissing().conditions()] == [*PATTERNS, MODALITIES]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TwoTierMissing(tests=["F"]), "tests must be some of"),
        (lambda: TwoTierMissing(tests=[]), "tests must be some of"),
        (lambda: RandomFeatureMissing(training_rate=1.5), "training_rate must be between 0 and 1"),
        (lambda: RandomRateMissing(rates=[]), "rates must be numbers"),
        (lambda: RandomModalityMissing(rate=0.8), "rate must be from 0 to 0.7"),
        (lambda: RandomModalityMissing(sampler="x"), "sampler must be gcnet"),
        (lambda: FixedModalityMissing(training_patterns="x"), "training_patterns must be"),
        (lambda: PatternDropout(drop_rate=-1), "drop_rate must be between 0 and 1"),
        (lambda: CiderMissing(kind="x"), "kind must be rmfm"),
        (lambda: RateTriples(triples=[(0.1, 0.2)]), "triples must be lists of three"),
        (lambda: RateTriples(triples=[(0.1, 0.2, 1.2)]), "triples must be numbers between 0 and 1"),
        (lambda: RateTriples(triples=[[0.1, 0.2, 0.3]] * 2), "triples must name each test once"),
        (lambda: RandomFeatureMissing(rates=[0.1, 0.1]), "rates must name each test once"),
        (lambda: FrameDrop(rates=[float("nan")]), "rates must be numbers between 0 and 1"),
        (lambda: CiderMissing(training_rate=2), "training_rate must be between 0 and 1"),
        (lambda: TwoTierMissing(tests=["A", "A"]), "tests must name each test once"),
    ],
)
def test_wrong_settings_are_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_every_protocol_is_exported():
    import saccade.datamodules

    found = {name for name in dir(protocols) if name.endswith(("Missing", "Drop", "Dropout", "Triples"))}
    assert found <= set(saccade.datamodules.__all__)


@pytest.mark.parametrize("file", sorted((Path(saccade.configs.__file__).parent / "missing").glob("*.yaml")), ids=str)
def test_config_names_one_protocol_for_all(file):
    text = file.read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert text.startswith("# ")
    assert f"--config missing/{file.name}" in text
    data = settings["data"]["init_args"]
    tested = settings["trainer"]["callbacks"][-1]["init_args"]["protocol"]
    assert data["train_protocol"] == data["validation_protocol"] == tested
    made = getattr(protocols, tested["class_path"].rpartition(".")[2])(**tested.get("init_args", {}))
    assert made.conditions()
