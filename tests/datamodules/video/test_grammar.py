"""Captions tell all facts in many ways, and the measure counts exactly those that are told."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.datamodules.video import lexicon as lexicon
from saccade.datamodules.video.grammar import (
    _COMES,
    _FILLERS,
    _MOVES,
    _MOVING,
    _PACES,
    MAX_WORDS,
    MIN_WORDS,
    PROMPTS,
    SlotScore,
    caption,
    fact_list,
    slot_accuracy,
    told_facts,
)
from saccade.datamodules.video.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, SIZES, Scene, make_scene


def _scene(count: int) -> Scene:
    return next(
        scene for scene in (make_scene(0, "train", index) for index in range(100)) if len(scene.digits) == count
    )


def _caption(scene: Scene, seed: int) -> str:
    return caption(scene, np.random.default_rng(seed))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["train", "validation", "test"]), st.integers(0, 2**31))
def test_every_caption_tells_every_fact_of_its_scene(index: int, part: str, seed: int) -> None:
    scene = make_scene(0, part, index)
    text = _caption(scene, seed)
    assert slot_accuracy(text, scene) == SlotScore(len(scene.facts), len(scene.facts))
    assert MIN_WORDS <= len(text.split()) <= MAX_WORDS
    assert "{" not in text
    assert not re.search(r"  | \.|\bA [aeiu8]|\ban? (?:an?|only|just)\b|None", text)


def test_a_caption_of_another_scene_tells_clearly_less() -> None:
    scenes = [make_scene(0, "test", index) for index in range(200)]
    shares = [
        slot_accuracy(_caption(one, 1), other).accuracy for one, other in zip(scenes[1:], scenes[:-1], strict=True)
    ]
    assert 0.1 < np.mean(shares) < 0.3
    assert max(shares) < 0.9


def test_one_changed_fact_is_one_wrong_slot() -> None:
    scene = _scene(3)
    first, second, third = scene.digits
    text = _caption(scene, 0)
    other_colour = "red" if second.colour != "red" else "blue"
    changed = replace(scene, digits=(first, replace(second, colour=other_colour), third))
    assert slot_accuracy(text, changed).wrong == ("colour 2",)
    swapped = replace(scene, digits=(second, first, third))
    assert {"digit 1", "digit 2"} <= set(slot_accuracy(text, swapped).wrong)
    assert not [slot for slot in slot_accuracy(text, swapped).wrong if slot.endswith("3")]
    fewer = replace(scene, digits=(first, second))
    assert slot_accuracy(text, fewer).wrong == ("count",)


def test_what_is_not_told_or_told_twice_otherwise_is_wrong() -> None:
    scene = _scene(2)
    facts = scene.facts
    assert slot_accuracy("", scene) == SlotScore(0, 10, tuple(facts))
    assert slot_accuracy("Nothing to be seen here, sorry.", scene).right == 0
    first, second = scene.digits
    short = f"{lexicon.COUNTS['2'][0]}. First, a {first.size} {lexicon.DIGITS[first.label]}. "
    assert slot_accuracy(short, scene).right == 3
    twice = short + f"Once more, first the {first.label}."
    assert slot_accuracy(twice, scene).right == 3
    against = short + f"Or rather, first the {second.label}."
    assert slot_accuracy(against, scene).wrong[:3] == ("background", "digit 1", "colour 1")
    assert slot_accuracy(short + "No, there are three digits.", scene).right == 2
    # describing a third digit says that there are more than two
    assert slot_accuracy(short + "The third digit is red.", scene).right == 2
    # a text that claims everything knows nothing
    everything = " ".join([*lexicon.DIGITS, *SIZES, *COLOURS, *DIRECTIONS, *BACKGROUNDS, "two digits", "one digit"])
    assert slot_accuracy(everything, scene).right == 0


def test_places_move_the_story_on() -> None:
    text = "Three digits. A red one goes up, followed by a blue two. Then a 3. First of all, it is small. Last, left."
    told = told_facts(text)
    assert told == {
        "count": {"3"},
        "digit 1": {"1"}, "colour 1": {"red"}, "direction 1": {"up"}, "size 1": {"small"},
        "digit 2": {"2"}, "colour 2": {"blue"},
        "digit 3": {"3"}, "direction 3": {"left"},
    }  # fmt: skip
    # without a count the last one is the one behind those that were told
    assert told_facts("First a 4, finally a 7.") == {"digit 1": {"4"}, "digit 2": {"7"}}
    assert "digit beyond" in told_facts("Finally a 7, then an 8.")


@pytest.mark.parametrize("index", range(40))
def test_a_list_tells_every_fact_and_hardly_anything_else(index: int) -> None:
    scene = make_scene(3, "train", index, 4)
    text = fact_list(scene)
    score = slot_accuracy(text, scene)
    assert (score.right, score.wrong) == (score.asked, ())
    assert len(text.split()) <= 12 + 7 * len(scene.digits)
    other = make_scene(3, "train", index + 1, 4)
    assert slot_accuracy(text, other).right < slot_accuracy(fact_list(other), other).right


def test_every_phrase_makes_its_claim_and_no_other() -> None:
    groups = (
        ("size", lexicon.SIZES, SIZES), ("colour", lexicon.COLOURS, COLOURS),
        ("direction", lexicon.DIRECTIONS, DIRECTIONS), ("background", lexicon.BACKGROUNDS, BACKGROUNDS),
        ("count", lexicon.COUNTS, "1234"),
    )  # fmt: skip
    for kind, group, values in groups:
        assert set(group) == set(values)
        for value, phrases in group.items():
            for phrase in phrases:
                assert set(lexicon.claims(f"It is {phrase}.")) == {(kind, value)}, phrase
    for text in (*_FILLERS, *_PACES, *_MOVES, *_MOVING, *_COMES, *PROMPTS):
        assert lexicon.claims(text) == [], text


@pytest.mark.parametrize(
    ("text", "direction"),
    [("UP AND  LEFT", "upper left"), ("to the top-right", "upper right"), ("bottom left corner", "lower left"),
     ("down, and to the right", "lower right"), ("upwards", "up"), ("an upright leftover", None)],
)  # fmt: skip
def test_wordings_of_others_are_understood(text: str, direction: str | None) -> None:
    assert lexicon.claims(text) == ([("direction", direction)] if direction else [])


def test_the_same_facts_are_told_in_many_ways() -> None:
    scene = _scene(2)
    captions = [_caption(scene, seed) for seed in range(300)]
    assert len(set(captions)) == 300
    assert _caption(scene, 7) == captions[7]
    assert len({text.split(".")[0] for text in captions}) > 60
    for phrases in (lexicon.SIZES[scene.digits[0].size], lexicon.DIRECTIONS[scene.digits[1].direction], _FILLERS):
        assert all(any(phrase in text or phrase.capitalize() in text for text in captions) for phrase in phrases)
    # now and then the last digit is told before the first
    labels = [str(digit.label) for digit in scene.digits]
    told_first = [next(value for kind, value in lexicon.claims(text) if kind == "digit") for text in captions]
    assert 0.05 < np.mean([label == labels[1] for label in told_first]) < 0.3
    assert set(told_first) == set(labels)
