"""Threads work beside each other, and alone while one of them captures."""

from __future__ import annotations

import threading

import pytest

from saccade.inference.engine.capture_turns import CaptureTurns
from tests.support.processes import TIME_LIMIT


def test_workers_do_not_wait_for_each_other() -> None:
    turns, together = CaptureTurns(), threading.Barrier(3, timeout=TIME_LIMIT)

    def work() -> None:
        with turns.working(), turns.working():
            together.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIME_LIMIT)
    assert not together.broken


@pytest.mark.parametrize("inside", [True, False])
def test_a_capture_is_alone(inside: bool) -> None:
    turns, busy, most, captures = CaptureTurns(), [0], [0], []
    guard = threading.Lock()

    def work(number: int) -> None:
        for turn in range(200):
            with turns.working():
                with guard:
                    busy[0] += 1
                    most[0] = max(most[0], busy[0])
                if inside and turn % 20 == number:  # as a step captures: the thread itself steps back for a moment
                    with guard:
                        busy[0] -= 1
                    with turns.capturing():
                        captures.append(busy[0])
                    with guard:
                        busy[0] += 1
                with guard:
                    busy[0] -= 1
            if not inside and turn % 20 == number:
                with turns.capturing():
                    captures.append(busy[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIME_LIMIT)
    assert captures == [0] * 40


def test_an_error_leaves_no_turn_taken() -> None:
    turns = CaptureTurns()
    for turn in (turns.capturing, turns.working):
        with pytest.raises(RuntimeError, match="planted"), turn():
            raise RuntimeError("planted")
    with turns.working(), turns.capturing():
        pass
    assert (turns._working, turns._waiting, turns._capturing) == (0, 0, False)
