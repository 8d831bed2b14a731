"""Many files are split by file and stay where they are; few are cut inside."""

import random

import pytest

from saccade.datamodules.text.files import part_of
from saccade.datamodules.text.splitting import split


def test_many_files_are_split_by_name_alone() -> None:
    rng = random.Random(0)
    names = [f"notes/{number}.txt" for number in range(400)]
    sizes = [rng.randrange(100, 20_000) for _ in names]
    for count in (200, 300, 400):
        found = split(names[:count], sizes[:count], 0.05, 0.05, seed=0)
        assert found.by_file
        wanted = [[(part_of(name, 0.05, 0.05, 0), size)] for name, size in zip(names, sizes, strict=True)]
        assert found.cuts == wanted[:count]


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60])
@pytest.mark.parametrize("fractions", [(0.05, 0.05), (0.1, 0.0), (0.3, 0.3)])
def test_every_part_gets_text_whatever_the_names_are(count: int, fractions: tuple[float, float]) -> None:
    validation, test = fractions
    for trial in range(30):
        names = [f"{trial}-{number}.txt" for number in range(count)]
        found = split(names, [10_000] * count, validation, test, seed=0)
        for part, share in (("train", 1 - validation - test), ("validation", validation), ("test", test)):
            assert found.size(part) >= 0.1 * share * 10_000 * count
        assert sum(map(found.size, ("train", "validation", "test"))) == 10_000 * count
        if not test:
            assert found.size("test") == 0
        if not found.by_file:
            assert found.size("validation") == pytest.approx(validation * 10_000 * count, rel=0.01)


def test_one_file_that_holds_nearly_everything_is_cut() -> None:
    names = ["large.txt", *(f"{number}.txt" for number in range(50))]
    found = split(names, [10_000_000, *[1000] * 50], 0.05, 0.05, seed=0)
    assert not found.by_file
    assert found.cuts[0] == [("train", 9_000_000), ("validation", 9_500_000), ("test", 10_000_000)]


def test_a_file_of_a_few_bytes_ends_where_it_ends() -> None:
    for size in (1, 2, 3, 7):
        (cuts,) = split(["a.txt"], [size], 0.05, 0.05, 0).cuts
        ends = [end for _, end in cuts]
        assert ends == sorted(ends)
        assert ends[-1] == size
    (cuts,) = split(["a.txt"], [100], 0.05, 0.0, 0).cuts
    assert cuts == [("train", 95), ("validation", 100)]
