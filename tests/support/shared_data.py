"""Where the shared public data is. Tests that use it are skipped, with a reason, where it is absent."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("SACCADE_SHARED_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def shared_file(name: str) -> Path:
    """The path of a shared file; skips the calling test where it is absent."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not in {ROOT}: set SACCADE_SHARED_DATA to the folder of the shared data")
    return path
