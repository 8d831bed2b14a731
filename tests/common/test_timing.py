"""Times are medians of calls in turn; warm-up turns do not count."""

import torch

from saccade.common import timing
from saccade.common.timing import median_seconds, medians_in_turn

CPU = torch.device("cpu")


def test_calls_alternate_and_the_first_three_turns_do_not_count(monkeypatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(timing, "clock", lambda device: now[0])

    def call(name: str, seconds: list[float]):
        def run() -> None:
            order.append(name)
            now[0] += seconds[order.count(name) - 1]

        return run

    calls = [call("a", [9, 9, 9, 1, 5, 2]), call("b", [9, 9, 9, 4, 3, 8])]
    assert medians_in_turn(calls, 3, CPU) == [2, 4]
    assert order == ["a", "b"] * 6


def test_one_call_is_timed() -> None:
    calls = []
    assert median_seconds(lambda: calls.append(1), 2, CPU) >= 0
    assert len(calls) == 5
