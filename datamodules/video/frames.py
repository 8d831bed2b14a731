"""What the readers of clips share: which frames they read, and how errors of libraries become one line."""

from __future__ import annotations

FRAMES_PER_SECOND = 24.0
"""Of clips whose frames have no times, as the processor of Qwen3-VL takes it."""


def sample_positions(total: int, count: int) -> list[int]:
    """Choose evenly spread frames of a clip, beginning with its first one, as the video processors of transformers do.

    Args:
        total: Number of frames of the clip, at least 1.
        count: Number of frames to choose; if the clip has fewer, some are chosen repeatedly.

    Returns:
        `count` positions in increasing order, possibly with repetitions.
    """
    return [i * total // count for i in range(count)]


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none.

    Args:
        error: An error of a library that decodes files.
    """
    text = str(getattr(error, "strerror", None) or error)  # without the number and the path, for errors of systems
    return (text.strip().splitlines() or [type(error).__name__])[0]
