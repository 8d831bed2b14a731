"""Sources: chunks restore them exactly, and what the target has is removed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.datamodules.retrieval.files import Pair
from saccade.datamodules.retrieval.sources import Chunks, Source, read_source, without_shared
from saccade.datamodules.retrieval.targets import open_target


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 20), st.integers(0, 3))
def test_chunks_restore_their_sources(sizes: list[int], size: int, seed: int) -> None:
    size = min(size, *sizes)
    sources = [
        Source(f"s{k}", f"s{k}", "pairs", [Pair(f"{k} {i}", "", 1) for i in range(count)])
        for k, count in enumerate(sizes)
    ]
    cut = Chunks(sources, size, seed)
    assert sum(cut.counts) == sum(-(-count // size) for count in sizes)
    for k, source in enumerate(sources):
        chunks = [cut.pairs(k, j) for j in range(cut.counts[k])]
        assert all(len(chunk) == size for chunk in chunks[:-1])
        assert 0 < len(chunks[-1]) <= size
        joined = [pair for chunk in chunks for pair in chunk]
        assert joined == [source.pairs[place] for place in cut.permutations[k]]
        assert sorted(pair.query for pair in joined) == sorted(pair.query for pair in source.pairs)


def test_packages_drop_what_the_target_has() -> None:
    target = open_target("networkx", "fewshot")
    source = read_source("networkx", max_pairs_per_package=50)
    with pytest.raises(ValueError, match="positive pairs that the target networkx lacks, got none in networkx"):
        without_shared(source, target)
    mixed = Source("mixed", "mixed", "package", [*source.pairs, Pair("something of its own", "code", 1)])
    assert len(without_shared(mixed, target).pairs) == 1
