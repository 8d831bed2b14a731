"""VideoCaptions: video clips with questions and long answers, for video-language models."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, get_args

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from saccade.common.checks import check_choice, check_count, check_share
from saccade.datamodules.loaders import BatchLoader, BatchSampler, with_a_batch
from saccade.datamodules.text.files import PARTS
from saccade.datamodules.text.tokenization import tokenizer_digest
from saccade.datamodules.video.clip_checks import check_clips
from saccade.datamodules.video.clips import Clips, ClipSource, Files, Scenes
from saccade.datamodules.video.grammar import SlotScore, slot_accuracy
from saccade.datamodules.video.preprocessing import Family, VisualFormat
from saccade.datamodules.video.reading import read_manifest
from saccade.datamodules.video.scenes import MAX_DIGITS
from saccade.datamodules.video.splits import split_rows
from saccade.datamodules.video.tokenization import load_video_tokenizer, train_video_tokenizer, visual_format

_TOKENIZER_SCENES = 2000  # scenes whose captions train the tokenizer, the same for every seed and number of scenes


class VideoCaptions(LightningDataModule):
    """Short clips with a question and a long answer, as inputs of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision.

    Without a manifest the clips are synthetic: handwritten digits (scans from scikit-learn) move over textured
    backgrounds, one after another, with captions from a grammar with many wordings. The facts of each clip are known,
    so that `score` counts which of them a text states. The parts of the split share neither scans nor combinations of
    facts. Clips are rendered or read when a batch is made.

    Batches are dictionaries of tensors: `input_ids` [B, S] padded on the right, `attention_mask` [B, S], `labels`
    [B, S] (-100 except for the answer and its end), `prompt_length` [B] (tokens before the answer), `item` [B] (index
    in the part), `pixel_values_videos`, and for a Qwen `video_grid_thw` [B, 3] and `mm_token_type_ids` [B, S] (0 for
    text, 2 for video). The video is before the question, for Qwen3-VL with the times of its frames (24 a second where a
    clip tells none); the answer ends with `<|im_end|>`. After `setup`,
    `tokenizer` is the tokenizer, and `visual` the visual format, with which the configuration of the model must agree.
    `predict` reads the test part.

    Args:
        manifest: JSON lines with `video` (relative to the file), `prompt` and `answer`. None uses synthetic clips.
        family: Model family: `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl` or `llava_onevision`.
        tokenizer: Folder or Hugging Face hub id of a tokenizer, processor or model of the family. None trains a
            byte-level BPE tokenizer on the texts of the training part, or without a manifest on captions that do not
            depend on other settings.
        vocab_size: Most tokens of a trained tokenizer, including special ones. Not used if `tokenizer` is given.
        frames: Number of frames of each clip, spread evenly over it.
        height: Height of a frame, in pixels: a multiple of `patch_size * merge_size`; any for LLaVA-OneVision.
        width: Width of a frame, in pixels, like `height`; for LLaVA-OneVision equal to the height.
        max_pixels: For files with a Qwen: resize frames to at most so many pixels and keep their aspect ratio. None
            resizes all frames to `height` and `width`.
        patch_size: Side of a patch of the vision tower, in pixels: 14 in the published models, 16 for Qwen3-VL.
        merge_size: Patches along each axis that become one token; 2 for LLaVA-OneVision.
        image_mean: Mean of red, green and blue, 0 to 1, as in the processor of the model. None for the default
            of the family's processor: that of CLIP, for Qwen3-VL 0.5.
        image_std: Standard deviation of red, green and blue; None for the family's default.
        max_tokens: Most tokens of a sequence, including the video. A longer one is an error; it is not truncated.
        max_digits: Most digits of a synthetic scene, 1 to 4.
        list_scenes: In the first epoch, so many training scenes come first, with a short list of their facts as answer
            instead of a caption. An untrained model learns to use the video from lists many times sooner. 0 for a
            trained model; at most all scenes are used.
        list_frames: Number of frames of those first scenes. Fewer frames have fewer tokens, so that a step costs less.
            None takes `frames`.
        fact_lists: Share of the other training scenes with such a list as answer, 0 to 1. Validation and test scenes
            have captions only.
        scenes: Number of synthetic training scenes.
        validation_scenes: Number of synthetic validation scenes.
        test_scenes: Number of synthetic test scenes; 0 leaves the test part empty.
        batch_size: Clips for each batch and device.
        manifest_validation_fraction: Share of the clips of a manifest for validation, 0 to 1; all rows of a clip are in
            the same part.
        manifest_test_fraction: Share of the clips of a manifest for test and predict.
        seed: Seed of the scenes and of the split of a manifest. It is independent of `seed_everything`, so that runs
            with different seeds are validated on the same clips.
        num_workers: Loader processes; 0 renders and reads clips in the training process.

    Raises:
        ValueError: A setting or a file is invalid.
    """

    tokenizer: PreTrainedTokenizerFast
    visual: VisualFormat

    def __init__(
        self,
        manifest: str | None = None,
        family: Family = "qwen2_5_vl",
        tokenizer: str | None = None,
        vocab_size: int = 1024,
        frames: int = 8,
        height: int = 56,
        width: int = 56,
        max_pixels: int | None = None,
        patch_size: int = 14,
        merge_size: int = 2,
        image_mean: tuple[float, float, float] | None = None,
        image_std: tuple[float, float, float] | None = None,
        max_tokens: int = 2048,
        max_digits: int = 4,
        list_scenes: int = 0,
        list_frames: int | None = None,
        fact_lists: float = 0.5,
        scenes: int = 10_000,
        validation_scenes: int = 200,
        test_scenes: int = 200,
        batch_size: int = 16,
        manifest_validation_fraction: float = 0.1,
        manifest_test_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        check_choice("family", family, get_args(Family))
        for name, value, least in (
            ("frames", frames, 1),
            ("max_tokens", max_tokens, 1),
            ("scenes", scenes, 1),
            ("validation_scenes", validation_scenes, 1),
            ("test_scenes", test_scenes, 0),
            ("list_scenes", list_scenes, 0),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            check_count(name, value, least)
        if not 1 <= max_digits <= MAX_DIGITS:
            raise ValueError(f"max_digits must be from 1 to {MAX_DIGITS}, got {max_digits}: change it.")
        for name, count in (("frames", frames), ("list_frames", frames if list_frames is None else list_frames)):
            if manifest is None and count < 2 * max_digits:
                raise ValueError(
                    f"{name} must be at least {2 * max_digits} to show the motion of max_digits={max_digits} digits,"
                    f" got {count}: raise it, or lower max_digits."
                )
        for name, fraction in (
            ("fact_lists", fact_lists),
            ("manifest_validation_fraction", manifest_validation_fraction),
            ("manifest_test_fraction", manifest_test_fraction),
        ):
            check_share(name, fraction)
        if manifest_validation_fraction + manifest_test_fraction > 1:
            raise ValueError(
                f"manifest_test_fraction must be at most {1 - manifest_validation_fraction:g} with"
                f" manifest_validation_fraction={manifest_validation_fraction}, got {manifest_test_fraction}: lower one"
                " of them."
            )
        if image_std is not None and min(image_std) <= 0:
            raise ValueError(f"image_std must be above 0 for every colour, got {list(image_std)}: correct it.")
        self.manifest = manifest
        self.family = family
        self.tokenizer_source = tokenizer
        self.vocab_size = vocab_size
        self.frames = frames
        self.height = height
        self.width = width
        self.max_pixels = max_pixels
        self.patch_size = patch_size
        self.merge_size = merge_size
        self.image_mean = image_mean
        self.image_std = image_std
        self.max_tokens = max_tokens
        self.max_digits = max_digits
        self.list_scenes = list_scenes
        self.list_frames = list_frames
        self.fact_lists = fact_lists
        self.scenes = scenes
        self.validation_scenes = validation_scenes
        self.test_scenes = test_scenes
        self.batch_size = batch_size
        self.manifest_validation_fraction = manifest_validation_fraction
        self.manifest_test_fraction = manifest_test_fraction
        self.seed = seed
        self.num_workers = num_workers
        self._parts: dict[str, Clips] = {}
        self._checked: set[str] = set()

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, check its clips, and train or load the tokenizer (on all ranks, with the same result).

        All texts of a manifest are checked. Clips are opened to read their headers: those of the part that the stage
        reads, and for `fit` those of all parts, so that a broken file is found before training.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; None for all parts.

        Raises:
            ValueError: A file is invalid, or a setting does not fit the tokenizer or the model family.
        """
        if not self._parts:
            self._prepare()
        if self.manifest is not None:
            own = {"validate": "validation", "test": "test", "predict": "test"}.get(stage or "fit")
            self._check_files({own} if own else set(PARTS))

    def _prepare(self) -> None:
        sources = self._scene_sources() if self.manifest is None else self._manifest_sources(self.manifest)
        if self.tokenizer_source is not None:
            self.tokenizer = load_video_tokenizer(self.tokenizer_source, self.family)
        else:
            train = sources["train"]
            own = (text for item in range(len(train)) for text in train.texts(item))
            texts = _world_texts() if self.manifest is None else own
            self.tokenizer = train_video_tokenizer(texts, self.vocab_size, self.family)
        self.visual = visual_format(
            self.tokenizer,
            self.family,
            self.height,
            self.width,
            self.patch_size,
            self.merge_size,
            self.max_pixels,
            self.image_mean,
            self.image_std,
        )
        self._parts = {
            part: Clips(source, self.tokenizer, self.visual, self.max_tokens) for part, source in sources.items()
        }
        if self.manifest is not None:
            for clips in self._parts.values():
                clips.check_texts()

    def _check_files(self, parts: set[str]) -> None:
        """Open the clips of some parts, unless this was done before."""
        wanted = {part: self._parts[part] for part in PARTS if part in parts - self._checked}
        sources = [clips.source for clips in wanted.values()]
        rows = [row for source in sources if isinstance(source, Files) for row in source.rows]
        sizes = check_clips(sorted(rows, key=lambda row: row.line), self.trainer)
        for clips in wanted.values():
            clips.check_lengths(self.frames, sizes)
        self._checked |= parts

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training part is too small for one batch on every device.
        """
        what = f"{len(self._parts['train'])} clips of the training part"
        return with_a_batch(self._loader("train"), self.batch_size, what, "clips")

    def val_dataloader(self) -> BatchLoader:
        """Every validation clip once, in order, on any number of devices.

        Raises:
            ValueError: The split of the manifest leaves the part empty.
        """
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> BatchLoader:
        """Every test clip once, in order, on any number of devices.

        Raises:
            ValueError: There are no test clips.
        """
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The same batches as `test_dataloader`."""
        loader = self.test_dataloader()
        # for `predict` Lightning makes a new loader with the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def score(self, text: str, item: int, part: str) -> SlotScore | None:
        """Count the facts of a clip that a text states correctly.

        Args:
            text: Output of a model.
            item: Index of the clip in its part, as in `item` of a batch.
            part: `train`, `validation` or `test`.

        Returns:
            The score; None for clips of a manifest, whose facts are not known.

        Raises:
            ValueError: The part or the clip does not exist.
        """
        source = self._clips(part, item).source
        return slot_accuracy(text, source.scene(item)) if isinstance(source, Scenes) else None

    def answer(self, item: int, part: str) -> str:
        """Return the answer of a clip in the data.

        Args:
            item: Index of the clip in its part.
            part: `train`, `validation` or `test`.

        Raises:
            ValueError: The part or the clip does not exist.
        """
        return self._clips(part, item).source.texts(item)[1]

    def sample_ids(self, keys: Tensor) -> list[str]:
        """Return what users call clips of the test part, for the table of predictions.

        Args:
            keys: Indices of clips, as in `item` of a batch [B].

        Returns:
            For a manifest the `id` of each row, or the path of its clip as written.

        Raises:
            ValueError: A clip does not exist.
        """
        return [self._clips("test", key).source.name(key) for key in keys.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Return the digest of the tokenizer and the family, for the checkpoint."""
        return {"family": self.family, "tokenizer": tokenizer_digest(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained with another tokenizer or family.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The tokenizer or the family of the checkpoint differs.
        """
        if state_dict["family"] != self.family:
            raise ValueError(
                f"family must be that of the checkpoint, {state_dict['family']}, got {self.family}: set it back."
            )
        if state_dict["tokenizer"] != tokenizer_digest(self.tokenizer):
            raise ValueError(
                "tokenizer must be that of the checkpoint, got another one: set it to the folder that the training run"
                " exported."
            )

    def _clips(self, part: str, item: int) -> Clips:
        if part not in self._parts:
            raise ValueError(
                f"part must be one of {', '.join(self._parts) or 'none before setup'}, got {part!r}: choose one."
            )
        clips = self._parts[part]
        if not 0 <= item < len(clips):
            raise ValueError(f"item must be from 0 to {len(clips) - 1} in the {part} part, got {item}: change it.")
        return clips

    def _evaluation_loader(self, part: str) -> BatchLoader:
        if not len(self._parts[part]):
            name = "test_scenes" if self.manifest is None else f"manifest_{part}_fraction"
            raise ValueError(f"{name} must leave clips for the {part} part, got none: raise it.")
        return self._loader(part)

    def _loader(self, part: str) -> BatchLoader:
        trainer = self.trainer
        clips = self._parts[part]
        sampler = BatchSampler(
            len(clips),
            self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            train=part == "train",
            # the order of training depends on seed_everything, the scenes do not
            seed=int(os.environ.get("PL_GLOBAL_SEED", self.seed)),
            early=self.list_scenes if self.manifest is None else 0,
        )
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return BatchLoader(clips, sampler, self.num_workers, pin_memory=on_gpu)

    def _scene_sources(self) -> dict[str, ClipSource]:
        sizes = zip(PARTS, (self.scenes, self.validation_scenes, self.test_scenes), strict=True)
        shape = (self.frames, self.height, self.width)
        lists = {"train": (self.fact_lists, self.list_scenes, self.list_frames)}
        return {
            part: Scenes(part, count, self.seed, self.max_digits, shape, *lists.get(part, ())) for part, count in sizes
        }

    def _manifest_sources(self, manifest: str) -> dict[str, ClipSource]:
        fractions = self.manifest_validation_fraction, self.manifest_test_fraction
        rows = split_rows(read_manifest(manifest), *fractions, self.seed)
        if not rows["train"] and self.tokenizer_source is None:
            raise ValueError(
                "tokenizer must be given, because the split leaves no training clips to train one, got None: set it,"
                " lower the fractions, or give more clips."
            )
        return {part: Files(own, self.frames) for part, own in rows.items()}


@cache
def _world_texts() -> tuple[str, ...]:
    """Questions and captions for the training of the default tokenizer of synthetic clips."""
    source = Scenes("train", _TOKENIZER_SCENES, 0, MAX_DIGITS, (0, 0, 0))
    return tuple(text for item in range(len(source)) for text in source.texts(item))
