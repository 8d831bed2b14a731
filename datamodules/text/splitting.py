"""The split of a corpus into training, validation and test part: by file, or inside every file where there are few."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.datamodules.text.files import part_of

LEAST_SHARE = 0.1
"""A split by file is taken if each part holds at least this much of the bytes that its fraction asks for."""


@dataclass(frozen=True)
class Split:
    """Which bytes of every file belong to which part.

    Attributes:
        by_file: Whether every file lies in one part; otherwise every file is cut into contiguous parts.
        cuts: For each file its parts in their order, each with the byte at which it ends.
    """

    by_file: bool
    cuts: list[list[tuple[str, int]]]

    def size(self, part: str) -> int:
        """The bytes of a part."""
        spans = (zip(cuts, [0, *(end for _, end in cuts)], strict=False) for cuts in self.cuts)
        return sum(end - start for span in spans for (name, end), start in span if name == part)


def split(
    names: Sequence[str], sizes: Sequence[int], validation_fraction: float, test_fraction: float, seed: int
) -> Split:
    """Split by file where that leaves every part enough text, otherwise inside every file.

    By file, the part depends on the name and the seed alone (see `part_of`), so files do not change their part when the
    corpus grows. With few files, or with one that is larger than all others, a part could stay empty or nearly so. Then
    every file is cut at two bytes: its beginning is for training, its middle for validation, its end for test.

    Args:
        names: Names of the files.
        sizes: Their sizes, in bytes.
        validation_fraction: Share for validation, 0 to 1.
        test_fraction: Share for test, 0 to 1; a part whose share is 0 stays empty.
        seed: Seed of the split by file.

    Returns:
        The split.
    """
    fractions = {
        "train": 1 - validation_fraction - test_fraction, "validation": validation_fraction, "test": test_fraction,
    }  # fmt: skip
    parts = [part_of(name, validation_fraction, test_fraction, seed) for name in names]
    held = dict.fromkeys(fractions, 0)
    for part, size in zip(parts, sizes, strict=True):
        held[part] += size
    if all(held[part] >= LEAST_SHARE * share * sum(sizes) for part, share in fractions.items()):
        return Split(True, [[(part, size)] for part, size in zip(parts, sizes, strict=True)])
    return Split(False, [_inside(size, fractions) for size in sizes])


def _inside(size: int, fractions: dict[str, float]) -> list[tuple[str, int]]:
    """The parts of one file, the last one up to its end."""
    kept = [(part, share) for part, share in fractions.items() if share > 0]
    reached = itertools.accumulate(share for _, share in kept)
    return [(part, round(size * share)) for (part, _), share in zip(kept, reached, strict=True)]
