"""Visual inputs of models from frames, equal to those of transformers' video processors, without torchvision."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

Family = Literal["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"]

# of the training of CLIP; the default of the processors of most families
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class FamilyFormat:
    """What the families' inputs differ in.

    Attributes:
        pooled: Frames are square and their features are pooled, as in LLaVA-OneVision; else frames are cut into
            patches, which are merged, and a grid says how many there are.
        timed: In a prompt every group of frames stands by itself, behind its time.
        mean: Mean of red, green and blue (0 to 1), which the family's processor subtracts.
        std: Standard deviation of red, green and blue, by which it divides.
    """

    pooled: bool = False
    timed: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


FORMATS: dict[str, FamilyFormat] = {
    "qwen2_vl": FamilyFormat(),
    "qwen2_5_vl": FamilyFormat(),
    "qwen3_vl": FamilyFormat(timed=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "llava_onevision": FamilyFormat(pooled=True),
}
"""The families by `model_type`."""

_MOST_ELONGATED = 200  # longer side divided by shorter one; the limit of the Qwen processors


@dataclass(frozen=True)
class VisualFormat:
    """The format of a model's video inputs, with which the configuration of the model must agree.

    Attributes:
        family: One of `FORMATS`: a Qwen (merged patches of pairs of frames) or `llava_onevision` (pooled square
            frames).
        patch_size: Side of a patch of the vision tower, in pixels.
        merge_size: Patches along each axis that become one token; LLaVA-OneVision always pools two by two.
        temporal_patch_size: Frames of a patch; 1 for LLaVA-OneVision.
        height: Height of a frame after resizing, in pixels.
        width: Width of a frame after resizing, in pixels.
        max_pixels: Most pixels of a frame that keeps its aspect ratio; None resizes every frame to `height` and
            `width`.
        video_token: Text of the video token.
        video_token_id: Id of the video token.
        image_token_id: Id of the image token.
        vision_start_token_id: Id of the token before a video; None for LLaVA-OneVision.
        vision_end_token_id: Id of the token after a video; None for LLaVA-OneVision.
        mean: Mean of red, green and blue (0 to 1), which is subtracted.
        std: Standard deviation of red, green and blue, by which the result is divided.
    """

    family: Family
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    height: int
    width: int
    max_pixels: int | None
    video_token: str
    video_token_id: int
    image_token_id: int
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def pooled(self) -> bool:
        """Whether frames are square and pooled, without a grid of patches."""
        return FORMATS[self.family].pooled

    @property
    def timed(self) -> bool:
        """Whether every group of frames stands by itself in a prompt, behind its time."""
        return FORMATS[self.family].timed

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width to which frames of a given size are resized.

        Args:
            height: Height of the frames, in pixels.
            width: Width of the frames, in pixels.

        Raises:
            ValueError: The frames are too elongated.
        """
        if self.max_pixels is None or self.pooled:
            return self.height, self.width
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor, min(4 * factor**2, self.max_pixels), self.max_pixels)

    def tokens(self, frames: int, height: int | None = None, width: int | None = None) -> int:
        """Return the number of tokens of a video.

        Args:
            frames: Number of frames.
            height: Height of a frame after resizing, in pixels; None for the height of the format.
            width: Width of a frame after resizing, in pixels; None for the width of the format.

        Returns:
            Of a Qwen: one token for `merge_size` by `merge_size` patches of `temporal_patch_size` frames.
            LLaVA-OneVision: a quarter of the patches of each frame, rounded up along each axis, and one
            `image_newline`.
        """
        height, width = height or self.height, width or self.width
        if self.pooled:
            rows, columns = (math.ceil(side // self.patch_size / 2) for side in (height, width))
            return frames * rows * columns + 1
        factor = self.patch_size * self.merge_size
        return math.ceil(frames / self.temporal_patch_size) * (height // factor) * (width // factor)


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the size to which the Qwen processors resize a frame.

    Both sides become multiples of `factor`, the number of pixels is in the given range, and the aspect ratio is kept as
    far as possible. Source: the Qwen2-VL processors of transformers.

    Args:
        height: Height of the frame, in pixels.
        width: Width of the frame, in pixels.
        factor: `patch_size * merge_size`.
        min_pixels: Fewest pixels of the result.
        max_pixels: Most pixels of the result.

    Returns:
        Height and width.

    Raises:
        ValueError: One side is more than 200 times the other.
    """
    if max(height, width) > _MOST_ELONGATED * min(height, width):
        raise ValueError(
            f"video must have sides of at most {_MOST_ELONGATED} times each other, got frames of {width}x{height}"
            " pixels: crop them."
        )
    # Python rounds halves to even numbers, like the processors
    new = [round(side / factor) * factor for side in (height, width)]
    pixels = height * width
    if new[0] * new[1] > max_pixels:
        shrink = math.sqrt(pixels / max_pixels)
        new = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif new[0] * new[1] < min_pixels:
        grow = math.sqrt(min_pixels / pixels)
        new = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return new[0], new[1]


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize frames by bicubic interpolation with antialiasing, with the function of torch that the processors use.

    Args:
        frames: uint8 [F, H, W, 3].
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.

    Returns:
        uint8 [F, height, width, 3]; the given array if it has that size.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
    resized = interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()


def visual_inputs(frames: np.ndarray, visual: VisualFormat) -> tuple[dict[str, Tensor], int]:
    """Make the visual inputs of one video; see `visual_batch`.

    Args:
        frames: uint8 RGB [F, H, W, 3], at least one frame.
        visual: Visual format of the model.

    Returns:
        The tensors, and the number of video tokens.

    Raises:
        ValueError: The frames are not RGB, or too elongated.
    """
    inputs, (count,) = visual_batch([frames], visual)
    return inputs, count


def visual_batch(clips: Iterable[np.ndarray], visual: VisualFormat) -> tuple[dict[str, Tensor], list[int]]:
    """Make the visual inputs of videos.

    Args:
        clips: At least one, each uint8 RGB [F, H, W, 3] with at least one frame. An iterator may make them one by one;
            only resized frames are held.
        visual: Visual format of the model.

    Returns:
        The tensors, and the number of tokens of each video. For a Qwen `pixel_values_videos` float32 [patches of
        all videos, 3 * temporal_patch_size * patch_size ** 2], with the patches of a token next to each other, and
        `video_grid_thw` LongTensor [videos, 3] (patches along time, height, width); if the frames do not fill the
        last temporal patch, the last frame is repeated. For LLaVA-OneVision `pixel_values_videos` float32 [videos, F,
        3, height, width].

    Raises:
        ValueError: The frames are not RGB or too elongated, or clips of LLaVA-OneVision differ in length.
    """
    pieces: list[Tensor] = []
    grids: list[list[int]] = []
    counts: list[int] = []
    for frames in clips:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(
                f"frames must be uint8 [F, H, W, 3] with at least one frame, got {frames.dtype} {list(frames.shape)}:"
                " convert them to RGB."
            )
        height, width = visual.size_of(frames.shape[1], frames.shape[2])
        pixels = torch.from_numpy(np.array(resize_frames(frames, height, width)))
        counts.append(visual.tokens(len(frames), height, width))
        if visual.pooled:
            pieces.append(pixels.permute(0, 3, 1, 2)[None])
        else:
            patches, grid = _patches(pixels, visual)
            pieces.append(patches)
            grids.append(grid)
    if visual.pooled:
        if len(lengths := sorted({piece.shape[1] for piece in pieces})) > 1:
            raise ValueError(
                f"frames must be equally many in all clips of a batch for llava_onevision, got {lengths}: read as many"
                " frames from each clip."
            )
        return {"pixel_values_videos": _normalized(torch.cat(pieces), 2, visual)}, counts
    values = _normalized(torch.cat(pieces), 1, visual).flatten(1)
    return {"pixel_values_videos": values, "video_grid_thw": torch.tensor(grids)}, counts


def _patches(pixels: Tensor, visual: VisualFormat) -> tuple[Tensor, list[int]]:
    """Split frames [F, H, W, 3] into patches [N, 3, frames, rows, columns] in the order of merging, with their grid."""
    patch, merge, pair = visual.patch_size, visual.merge_size, visual.temporal_patch_size
    if missing := -len(pixels) % pair:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    grid = [len(pixels) // pair, pixels.shape[1] // patch, pixels.shape[2] // patch]
    split = pixels.reshape(grid[0], pair, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, 3)
    # time, row and column of the token, row and column of the patch in it | colour, frame, row, column in the patch
    return split.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3, pair, patch, patch), grid


def _normalized(pixels: Tensor, axis: int, visual: VisualFormat) -> Tensor:
    """Normalize uint8 colours along an axis to float32, with the mean and standard deviation of the format.

    All videos are processed at once, from uint8, because most of the time is spent on allocating memory.
    """
    shape = [3 if dimension == axis else 1 for dimension in range(pixels.ndim)]
    mean, std = (torch.tensor(values).reshape(shape) * 255 for values in (visual.mean, visual.std))
    return pixels.sub(mean).div_(std)
