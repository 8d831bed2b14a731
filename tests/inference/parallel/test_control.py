"""RoundControl in worlds whose rounds have known costs and tokens: no clock is read."""

from __future__ import annotations

import random

import pytest

from saccade.inference.parallel.control import RoundControl

PLAIN, LOOKUP = 0, 1


def played(
    control: RoundControl, world: dict[int, tuple[float, float]], rounds: int, seed: int = 0
) -> tuple[float, float]:
    """Tokens and seconds of some rounds; ``world`` has the seconds and the mean tokens of each kind of round."""
    draw, total, elapsed, before = random.Random(seed), 0.0, 0.0, 0
    for _ in range(rounds):
        choice = control.length()
        seconds = world[choice][0] * draw.uniform(0.9, 1.2)
        mean = world[before if choice else 0][1]  # what the round before has drafted is verified
        accepted = int(mean - 1 + draw.random())
        control.observe([accepted], [accepted], choice, seconds)
        total, elapsed, before = total + 1 + accepted, elapsed + seconds, choice
    return total, elapsed


WORLDS = {
    "parallel pays": {0: (17.0, 1.0), 1: (19.0, 1.3), 3: (20.0, 1.9), 5: (21.0, 3.2)},
    "half as many pay": {0: (17.0, 1.0), 1: (19.0, 1.3), 3: (20.0, 2.6), 5: (31.0, 2.7)},
    "look-up alone pays": {0: (17.0, 1.0), 1: (19.0, 2.5), 3: (30.0, 2.6), 5: (40.0, 2.7)},
    "nothing pays": {0: (17.0, 1.0), 1: (18.5, 1.05), 3: (22.0, 1.1), 5: (26.0, 1.15)},
    "one after the other": {0: (1.0, 1.0), 1: (1.1, 1.0), 3: (3.0, 1.2), 5: (5.0, 1.3)},
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_kind_that_pays_is_chosen(name: str) -> None:
    world, control = WORLDS[name], RoundControl(4, looks_up=True)
    best = max(tokens / seconds for seconds, tokens in world.values())
    control.begin()
    played(control, world, 40)  # every kind is tried
    for text in range(4):
        control.begin()
        tokens, elapsed = played(control, world, 200, seed=text)
        assert tokens / elapsed > 0.93 * best / 1.05  # rounds take 1.05 of what the world says on average
        assert tokens / elapsed > 0.955 * world[0][1] / world[0][0] / 1.05


def test_a_text_of_another_kind_is_noticed() -> None:
    control = RoundControl(4, looks_up=False)
    chat = {0: (17.0, 1.0), 3: (20.0, 1.05), 5: (21.0, 1.05)}
    code = {0: (17.0, 1.0), 3: (20.0, 1.9), 5: (21.0, 3.6)}
    for _ in range(3):
        control.begin()
        played(control, chat, 200)
    assert control.best() == PLAIN
    control.begin()
    played(control, code, 120)
    assert control.best() == 5
    control.begin()
    played(control, chat, 60)
    assert control.best() == PLAIN


def test_kinds() -> None:
    assert sorted(RoundControl(8, looks_up=True)._kinds) == [0, 1, 5, 9]
    assert sorted(RoundControl(1, looks_up=False)._kinds) == [0, 2]
    control = RoundControl(3, looks_up=True)
    seen = []
    for _ in range(16):
        seen.append(control.length())
        control.observe([0], [0], seen[-1], 1.0)
    assert seen == [0] * 4 + [4] * 4 + [3] * 4 + [1] * 4


def test_a_round_that_the_end_of_a_text_cuts_is_not_counted() -> None:
    control = RoundControl(4, looks_up=False)
    for _ in range(8):
        control.length()
        control.observe([0], [0], 0, 1.0)
    assert not control._kinds[5].seconds


@pytest.mark.filterwarnings("error")
def test_where_drafts_do_not_pay_it_is_said() -> None:
    control = RoundControl(4, looks_up=False)
    played(control, WORLDS["nothing pays"], 90)
    control.advise("Pearl", "give another draft")
    played(control, WORLDS["nothing pays"], 200)
    with pytest.raises(UserWarning, match="drafts of Pearl do not pay on this model and text, so"):
        control.advise("Pearl", "give another draft")
