"""The split of a manifest's clips into training, validation and test part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from saccade.datamodules.text.files import PARTS, part_of
from saccade.datamodules.video.reading import ManifestRow


def split_rows(
    rows: Sequence[ManifestRow], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[ManifestRow]]:
    """Assign the rows of a manifest to parts by a hash of the clip's path, so that all rows of a clip are in one part.

    With few clips a hash may leave a part empty. Then one clip is moved to each empty part whose share is not 0, as
    long as there are enough clips: first for training, then for validation, then for test. A line says so.

    Args:
        rows: The rows.
        validation_fraction: Share of the clips for validation, 0 to 1.
        test_fraction: Share of the clips for test, 0 to 1.
        seed: Seed of the split.

    Returns:
        The rows of each part, in order.
    """
    owners = {row.name: part_of(row.name, validation_fraction, test_fraction, seed) for row in rows}
    fractions = 1 - validation_fraction - test_fraction, validation_fraction, test_fraction
    shares = dict(zip(PARTS, fractions, strict=True))
    moved = []
    for part in PARTS:
        counts = {other: list(owners.values()).count(other) for other in PARTS}
        giver = max(PARTS, key=lambda other: counts[other])
        if counts[part] or shares[part] < 1e-9 or counts[giver] < 2:
            continue
        names = [name for name, owner in owners.items() if owner == giver]
        chosen = min(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        owners[chosen] = part
        moved.append(f"{chosen} is used for {part}")
    if moved:
        rank_zero_info(f"saccade: {len(owners)} clips are few, so that {' and '.join(moved)}: see manifest_*_fraction.")
    parts: dict[str, list[ManifestRow]] = {part: [] for part in PARTS}
    for row in rows:
        parts[owners[row.name]].append(row)
    return parts
