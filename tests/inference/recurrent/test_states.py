"""What recurrent layers remember: after any steps, commits and rollbacks it is what the text left would give."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from saccade.inference.recurrent.states import RecurrentStates
from tests.support.errors import one_line

KERNEL, CHANNELS = 4, 2


class Followed:
    """States of which every row's text is known, so that they can be told from it."""

    def __init__(self, rows: int, rollback: int) -> None:
        self.states = RecurrentStates(rollback)
        self.texts: list[list[int]] = [[] for _ in range(rows)]

    def step(self, new: list[list[int]], *, reading: bool = False, skipped: bool = False) -> None:
        """One forward, in which the inputs are the tokens and a state is the number that the text spells."""
        width = len(new[0])
        with self.states.step(width, reading):
            if skipped:
                return
            inputs = torch.tensor(new, dtype=torch.float64)[:, None].expand(-1, CHANNELS, -1)
            line = self.states.convolve(0, 0, inputs, KERNEL)
            assert line.shape == (len(new), CHANNELS, KERNEL - 1 + width)
            for row, text in enumerate(self.texts):
                right = ([0] * (KERNEL - 1) + text)[-KERNEL + 1 :] + new[row]
                assert line[row, 1].tolist() == right
            states = torch.stack([self.spelled(text, added) for text, added in zip(self.texts, new, strict=True)])
            self.states.write(1, 0, states[:, -1] if reading else states)

    @staticmethod
    def spelled(text: list[int], new: list[int]) -> torch.Tensor:
        """``[tokens, 1, 1]``."""
        whole = [sum(token * 3**place for place, token in enumerate([*text, *new[: at + 1]])) for at in range(len(new))]
        return torch.tensor(whole, dtype=torch.float64)[:, None, None]

    def commit(self, new: list[list[int]], counts: list[int]) -> None:
        self.states.commit(counts)
        for text, added, count in zip(self.texts, new, counts, strict=True):
            text += added[:count]

    def rewind(self, dropped: list[int]) -> None:
        self.states.rewind(dropped)
        self.texts = [text[: len(text) - count] for text, count in zip(self.texts, dropped, strict=True)]

    def keep(self, rows: list[int]) -> None:
        self.states.keep(rows)
        self.texts = [self.texts[row] for row in rows]

    def check(self) -> None:
        found = self.states.state(1)
        assert found is not None
        right = torch.stack([self.spelled(text[:-1], text[-1:])[-1] for text in self.texts])
        assert torch.equal(found, right)


@pytest.mark.parametrize("rollback", [0, 3])
@pytest.mark.parametrize("seed", range(6))
def test_only_the_text_is_remembered(rollback: int, seed: int) -> None:
    draw = random.Random(seed)
    rows = draw.randint(1, 4)
    followed = Followed(rows, rollback)
    lengths = [draw.randint(1, 5) for _ in range(rows)]
    prompts = [[draw.randint(0, 2) for _ in range(5)] for _ in range(rows)]
    edges = [0, *sorted(set(lengths))]
    for start, stop in pairwise(edges):  # pieces end where prompts end
        piece = [prompt[start:stop] for prompt in prompts]
        followed.step(piece, reading=True)
        followed.commit(piece, [stop - start if length >= stop else 0 for length in lengths])
    followed.check()
    reach = [0] * rows
    for _ in range(12):
        width = draw.choice([1, 1, 2, 5])
        new = [[draw.randint(0, 2) for _ in range(width)] for _ in followed.texts]
        followed.step(new)
        if draw.random() < 0.2:
            continue  # a forward of which nothing is kept
        counts = [draw.randint(0, width) for _ in new] if draw.random() < 0.7 else [width] * len(new)
        followed.commit(new, counts)
        reach = [min(rollback, old + count) for old, count in zip(reach, counts, strict=True)]
        followed.check()
        dropped = [draw.randint(0, most) for most in reach]
        followed.rewind(dropped)
        reach = [most - count for most, count in zip(reach, dropped, strict=True)]
        followed.check()
        if len(followed.texts) > 1 and draw.random() < 0.2:
            kept = sorted(draw.sample(range(len(followed.texts)), len(followed.texts) - 1))
            followed.keep(kept)
            reach = [reach[row] for row in kept]
            followed.check()


def test_a_layer_that_a_draft_skips_comes_back() -> None:
    followed = Followed(2, 4)
    piece = [[1, 2], [2, 1]]
    followed.step(piece, reading=True)
    followed.commit(piece, [2, 2])
    for _ in range(3):
        followed.step([[1], [1]], skipped=True)
        followed.states.commit([1, 1])
    followed.states.rewind([3, 3])
    followed.check()
    followed.step([[2, 1], [0, 2]])


def test_more_than_was_kept_is_not_taken_back() -> None:
    followed = Followed(2, 2)
    piece = [[1, 2], [2, 1]]
    followed.step(piece, reading=True)
    followed.commit(piece, [2, 2])
    one_line(lambda: followed.states.rewind([0, 1]), "row 1", "by 1 tokens", "kept for 0", "rollback")
    new = [[1, 1, 1], [2, 2, 2]]
    followed.step(new)
    followed.commit(new, [3, 1])
    one_line(lambda: followed.states.rewind([2, 2]), "row 1", "by 2 tokens", "kept for 1")
    followed.check()
    followed.rewind([2, 1])
    followed.check()


def test_what_is_kept_does_not_grow() -> None:
    followed = Followed(1, 1)
    followed.step([[1]], reading=True)
    followed.commit([[1]], [1])
    size = followed.states.bytes
    assert size == 8 * (CHANNELS * (KERNEL - 1 + 1) + 2)
    for width in (1, 4, 1):
        followed.step([[1] * width])
        followed.commit([[1] * width], [1])
        assert followed.states.bytes == size
        for trail in followed.states._trails.values():
            assert trail.items is not None
            assert trail.items.untyped_storage().nbytes() == trail.items.nbytes, "a view of more is kept"
    followed.states.clear()
    assert followed.states.bytes == 0
    assert followed.states.state(1) is None


def test_a_layer_that_returns_one_state_for_several_tokens_is_refused() -> None:
    states = RecurrentStates()
    with states.step(3, False):
        one_line(lambda: states.write(0, 0, torch.zeros(2, 1, 4)), "layer 0", "each of 3 tokens", "model.generate")
