"""Batches of selected chunks: the same number of steps on every rank, and every pair of a pass."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saccade.datamodules.retrieval.batches import ChunkSampler


def test_the_papers_chunk_takes_56_steps() -> None:
    # 640 pairs, 4 passes, batch size 48 on one device or 8 on each of six
    for batch_size, ranks in ((48, 1), (8, 6)):
        for rank in range(ranks):
            sampler = ChunkSampler(lambda _: [np.arange(640)] * 4, batch_size, rank, ranks)
            assert len(sampler) == len(list(sampler)) == 56


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
def test_ranks_make_the_same_steps_and_leave_nothing_out(count: int, size: int, ranks: int, passes: int) -> None:
    samplers = [ChunkSampler(lambda _: [np.arange(count)] * passes, size, rank, ranks) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert len({len(each) for each in batches}) == 1
    assert all(len(each) == len(sampler) for each, sampler in zip(batches, samplers, strict=True))
    assert all(0 < len(batch) <= size for each in batches for batch in each)
    seen = Counter(place for each in batches for batch in each for place in batch)
    assert set(seen) == set(range(count))
    assert sum(seen.values()) == passes * -(-count // ranks) * ranks
