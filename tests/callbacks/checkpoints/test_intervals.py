"""The setting --save_every."""

import pytest

from saccade.callbacks.checkpoints.intervals import SaveInterval


@pytest.mark.parametrize(
    ("value", "steps", "seconds"),
    [(500, 500, None), ("500", 500, None), ("90s", None, 90), ("30m", None, 1800), ("1.5h", None, 5400)],
)
def test_what_it_means(value, steps, seconds):
    found = SaveInterval.parse(value)
    assert (found.steps, found.seconds) == (steps, seconds)


def test_never():
    assert SaveInterval.parse(None) is None


@pytest.mark.parametrize("value", [0, -3, "0m", "often", "2.5", "10 days", True, ""])
def test_anything_else_is_refused(value):
    with pytest.raises(ValueError, match="save_every must be a number of steps or a time above 0, got"):
        SaveInterval.parse(value)


def test_steps_are_counted_from_the_last_save():
    interval = SaveInterval(steps=3)
    assert [interval.is_over(step) for step in (1, 2, 3)] == [False, False, True]
    interval.restart(3)
    assert [interval.is_over(step) for step in (4, 5, 6)] == [False, False, True]


def test_time_is_counted_from_the_last_save(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    interval = SaveInterval(seconds=60)
    now[0] += 59
    assert not interval.is_over(10_000)
    now[0] += 1
    assert interval.is_over(10_000)
    interval.restart(10_000)
    assert not interval.is_over(20_000)
