"""Synthetic clips of moving handwritten digits with known facts, so that captions can be scored exactly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from saccade.common.checks import check_choice
from saccade.datamodules.text.files import PARTS

SIZES = {"small": 0.4, "large": 0.6}
"""Height of a digit as a share of the frame's shorter side."""
COLOURS = {
    "red": (235, 45, 35),
    "green": (50, 215, 65),
    "blue": (75, 120, 255),
    "yellow": (250, 225, 50),
    "white": (245, 245, 245),
    "magenta": (235, 70, 225),
}
"""Colours in RGB, 0 to 255; each digit is a little darker."""
DIRECTIONS = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
    "upper left": (-1, -1),
    "upper right": (-1, 1),
    "lower left": (1, -1),
    "lower right": (1, 1),
}
"""Steps along rows and columns; rows grow downwards."""
BACKGROUNDS = ("plain", "striped", "checkered", "dotted", "fading", "grainy")
MAX_DIGITS = 4

_TRAVEL = 0.38  # share of the frame that a digit moves along each axis of its direction


@dataclass(frozen=True)
class MovingDigit:
    """A digit with its facts.

    Attributes:
        label: The digit, 0 to 9.
        scan: Index of the handwritten scan, 0 to 1796.
        size: A key of `SIZES`.
        colour: A key of `COLOURS`.
        direction: A key of `DIRECTIONS`.
        shade: Brightness of the colour, 0.85 to 1.
        offset: Position of the path in the free space, -1 to 1 for rows and columns.
    """

    label: int
    scan: int
    size: str
    colour: str
    direction: str
    shade: float
    offset: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Digits that appear one after another, each for an equal share of the time, on one background.

    Attributes:
        digits: The digits in order of appearance; no label occurs twice.
        background: One of `BACKGROUNDS`.
        texture: Seed of the colours and the pattern of the background.
    """

    digits: tuple[MovingDigit, ...]
    background: str
    texture: int

    @property
    def facts(self) -> dict[str, str]:
        """The facts of the scene by slot: `background`, `count`, and four facts of each digit.

        The slots of digits are numbered from 1 in the order of appearance: `digit 1`, `size 1`, `colour 1`,
        `direction 1`.
        """
        found = {"background": self.background, "count": str(len(self.digits))}
        for number, digit in enumerate(self.digits, start=1):
            found[f"digit {number}"] = str(digit.label)
            found[f"size {number}"] = digit.size
            found[f"colour {number}"] = digit.colour
            found[f"direction {number}"] = digit.direction
        return found


@cache
def _scans() -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """The scans [1797, 8, 8], 0 to 1, and for each part the indices of its scans, by label.

    The split does not depend on a seed, so that a model is validated on scans that it has not seen, whatever the seeds.
    """
    # imported here, because importing scikit-learn takes a second
    from sklearn.datasets import load_digits

    data = load_digits()
    numbers: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for label in range(10):
        own = np.random.default_rng(label).permutation(np.flatnonzero(data.target == label))
        tenth = len(own) // 10
        numbers["validation"].append(own[:tenth])
        numbers["test"].append(own[tenth : 2 * tenth])
        numbers["train"].append(own[2 * tenth :])
    return (data.images / 16.0).astype(np.float32), numbers


def _part_of(facts: dict[str, str]) -> str:
    """The part of scenes with these facts, the same for every seed; eight tenths are training."""
    tenth = hashlib.sha256("/".join(facts.values()).encode()).digest()[0] % 10
    return {0: "validation", 1: "test"}.get(tenth, "train")


def make_scene(seed: int, part: str, index: int, max_digits: int = MAX_DIGITS) -> Scene:
    """Draw a scene (ours).

    Different parts share no scan and no combination of facts, whatever their seeds.

    Args:
        seed: Seed of the scenes, at least 0.
        part: `train`, `validation` or `test`.
        index: Index of the scene in the part, at least 0.
        max_digits: Most digits of a scene, 1 to 4; all numbers up to it are equally frequent.

    Returns:
        The scene, equal for equal arguments on any machine.

    Raises:
        ValueError: The part does not exist, or `max_digits` is out of range.
    """
    check_choice("part", part, PARTS)
    if not 1 <= max_digits <= MAX_DIGITS:
        raise ValueError(f"max_digits must be from 1 to {MAX_DIGITS}, got {max_digits}: change it.")
    random = np.random.default_rng([seed, PARTS.index(part), index])
    numbers = _scans()[1][part]
    # drawn once, so that the number of digits is uniform in each part; the other facts depend on the part
    count = int(random.integers(1, max_digits + 1))
    while True:
        digits = tuple(
            MovingDigit(
                label=int(label),
                scan=int(random.choice(numbers[label])),
                size=tuple(SIZES)[random.integers(len(SIZES))],
                colour=tuple(COLOURS)[random.integers(len(COLOURS))],
                direction=tuple(DIRECTIONS)[random.integers(len(DIRECTIONS))],
                shade=float(random.uniform(0.85, 1.0)),
                offset=(float(random.uniform(-1, 1)), float(random.uniform(-1, 1))),
            )
            for label in random.permutation(10)[:count]
        )
        background = BACKGROUNDS[random.integers(len(BACKGROUNDS))]
        scene = Scene(digits, background, int(random.integers(2**31)))
        if _part_of(scene.facts) == part:
            return scene


def render(scene: Scene, frames: int, height: int, width: int) -> np.ndarray:
    """Render a scene.

    Args:
        scene: The scene.
        frames: Number of frames: at least one for each digit, and at least two for each to show its motion.
        height: Height of a frame, in pixels, at least 16.
        width: Width of a frame, in pixels, at least 16.

    Returns:
        The frames [frames, height, width, 3], uint8 RGB.

    Raises:
        ValueError: There are too few frames or pixels.
    """
    count = len(scene.digits)
    if frames < count:
        raise ValueError(f"frames must be at least {count}, one for each digit of the scene, got {frames}: raise it.")
    if min(height, width) < 16:
        raise ValueError(f"height and width must be at least 16 pixels, got {height} and {width}: raise them.")
    background = _background(scene, height, width)
    film = np.empty((frames, height, width, 3), dtype=np.uint8)
    film[:] = background.astype(np.uint8)
    scans = _scans()[0]
    looks = []
    for digit in scene.digits:
        side = round(SIZES[digit.size] * min(height, width))
        ink = _enlarged(scans[digit.scan], side)
        looks.append((1 - ink, ink * np.array(COLOURS[digit.colour], np.float32) * np.float32(digit.shade)))
    for frame in range(frames):
        time = (frame + 0.5) / frames * count
        which = int(time)
        clear, inked = looks[which]
        digit = scene.digits[which]
        row, column = _corner(digit, time - which, len(inked), height, width)
        place = (slice(row, row + len(inked)), slice(column, column + len(inked)))
        film[frame][place] = (background[place] * clear + inked).astype(np.uint8)
    return film


def _corner(digit: MovingDigit, phase: float, side: int, height: int, width: int) -> tuple[int, int]:
    """Row and column of the upper left pixel of a digit after the share `phase` (0 to 1) of its time."""
    corner = []
    for extent, step, offset in zip((height, width), DIRECTIONS[digit.direction], digit.offset, strict=True):
        room = extent - side
        travel = min(_TRAVEL * extent, room)
        free = room - travel if step else room
        start = free * (offset + 1) / 2 + (travel / 2 if step else 0.0)
        corner.append(min(max(round(start + step * travel * (phase - 0.5)), 0), room))
    return corner[0], corner[1]


def _enlarged(scan: np.ndarray, side: int) -> np.ndarray:
    """Enlarge a scan [8, 8] to ink [side, side, 1], 0 to 1: bilinear, with sharpened edges."""
    weights = _bilinear(side)
    smooth = weights @ scan @ weights.T
    return np.clip((smooth - 0.3) / 0.4, 0, 1)[:, :, None]


@cache
def _bilinear(side: int) -> np.ndarray:
    """Weights [side, 8] of bilinear interpolation from eight pixels to `side`."""
    at = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(8))).astype(np.float32)


def _background(scene: Scene, height: int, width: int) -> np.ndarray:
    """Render the background [height, width, 3], float32, darker than every colour of a digit."""
    random = np.random.default_rng(scene.texture)
    dark = random.uniform(5, 40, 3)
    light = dark + random.uniform(45, 65) + random.uniform(-10, 10, 3)
    period = min(height, width) / random.uniform(4, 6)
    angle = random.uniform(0, np.pi)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    rows += random.uniform(0, period)
    columns += random.uniform(0, period)
    match scene.background:
        case "striped":
            along = rows * np.sin(angle) + columns * np.cos(angle)
            share = (along / period % 1 < 0.5).astype(np.float32)
        case "checkered":
            share = ((rows // period + columns // period) % 2).astype(np.float32)
        case "dotted":
            near = (rows / period % 1 - 0.5) ** 2 + (columns / period % 1 - 0.5) ** 2
            share = (near < 0.07).astype(np.float32)
        case "fading":
            along = rows / height * np.sin(angle) + columns / width * np.cos(angle)
            share = (along - along.min()) / (along.max() - along.min())
        case "grainy":
            share = random.random((height, width), dtype=np.float32)
        case _:
            share = np.full((height, width), 0.3, np.float32)
    return (dark + share[:, :, None] * (light - dark)).astype(np.float32)
