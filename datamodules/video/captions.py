"""VideoCaptions: clips, questions and long answers for video-language models."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, get_args

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.text.files import PARTS, part_of
from saccade.datamodules.text.tokenization import tokenizer_digest
from saccade.datamodules.video.clips import Clips, Files, Scenes, Source
from saccade.datamodules.video.grammar import SlotScore, slot_accuracy
from saccade.datamodules.video.preprocessing import Family, VisualFormat
from saccade.datamodules.video.reading import ManifestRow, read_manifest
from saccade.datamodules.video.scenes import MAX_DIGITS
from saccade.datamodules.video.tokenization import load_video_tokenizer, train_video_tokenizer, visual_format

_TOKENIZER_SCENES = 2000  # whose captions train the tokenizer: the same ones for every seed and number of scenes


class VideoCaptions(LightningDataModule):
    """Short clips with a question and a long answer, as inputs of a Qwen2.5-VL or LLaVA-OneVision model.

    Without a manifest it takes the embedded world: handwritten digits (scikit-learn's real scans) that move over
    textured backgrounds, one after another, with captions from a grammar of many wordings. What is seen there is known,
    so that `score` counts exactly which facts a text tells. Parts share neither scans nor combinations of facts. Clips
    are rendered or read when they are needed.

    Batches are dictionaries of tensors: `input_ids` [B, S] padded on the right, `attention_mask` [B, S], `labels`
    [B, S] (-100 but for the answer and its end), `prompt_length` [B] (tokens before the answer), `item` [B] (the index
    in the part), `pixel_values_videos`, and for Qwen2.5-VL `video_grid_thw` [B, 3] and `mm_token_type_ids` [B, S] (0
    text, 2 video). The video stands before the question; the answer ends with `<|im_end|>`. After `setup`, `tokenizer`
    holds the tokenizer and `visual` what a model's configuration must agree with. `predict` reads the test part.

    Args:
        manifest: JSON lines with `video` (relative to the file), `prompt` and `answer`. None takes the embedded world.
        family: Whose inputs are made: `qwen2_5_vl` or `llava_onevision`.
        tokenizer: Folder or Hugging Face hub id of a tokenizer, processor or model of the family. None trains a
            byte-level BPE tokenizer on captions; those of the embedded world are the same for every seed and size.
        vocab_size: Most tokens of a tokenizer that is trained, special ones included. Unused when one is given.
        frames: Frames of every clip, spread evenly over it.
        height: Of a frame, in pixels: a multiple of `patch_size * merge_size`; any for LLaVA-OneVision.
        width: The same; for LLaVA-OneVision equal to the height.
        max_pixels: For files of Qwen2.5-VL: keep the shape of frames and shrink or enlarge them to at most so many
            pixels. None brings all to `height` and `width`.
        patch_size: Side of a patch of the vision tower, in pixels.
        merge_size: Patches along each axis that become one token; 2 for LLaVA-OneVision.
        image_mean: Mean of red, green and blue, 0 to 1, as the model's processor has it. None takes CLIP's, the
            default of both families' processors.
        image_std: Their deviations.
        max_tokens: Most tokens of a sequence, video included; a longer one is an error, it is never cut.
        max_digits: Most digits of a scene, 1 to 4.
        list_scenes: So many training scenes come first and are all asked for a terse list of their facts instead of a
            caption, because a new model learns to look from lists many times sooner. 0 for a model that has
            learned; all where there are fewer.
        fact_lists: Share of the other training scenes that are asked for lists too, 0 to 1. Validation and test ask for
            captions only.
        scenes: Training scenes of the embedded world.
        validation_scenes: Its validation scenes.
        test_scenes: Its test scenes; 0 leaves the test part empty.
        batch_size: Clips per batch and device.
        manifest_validation_fraction: Share of a manifest's clips for validation, 0 to 1; rows of one clip stay
            together.
        manifest_test_fraction: Share of its clips for test and predict.
        seed: Of the scenes and of a manifest's split. It does not follow `seed_everything`, so that runs with different
            seeds are validated on the same clips.
        num_workers: Loader processes; 0 renders and reads in the training process.

    Raises:
        ValueError: A setting is impossible, or a file cannot be used; the message names the setting.
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
        if family not in get_args(Family):
            raise ValueError(f"family: must be qwen2_5_vl or llava_onevision, but is {family!r}")
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
            if value < least:
                raise ValueError(f"{name}: must be at least {least}, but is {value}")
        if not 1 <= max_digits <= MAX_DIGITS:
            raise ValueError(f"max_digits: must lie between 1 and {MAX_DIGITS}, but is {max_digits}")
        if manifest is None and frames < 2 * max_digits:
            raise ValueError(
                f"frames: {frames} are too few to show the motion of max_digits={max_digits} digits one after another;"
                f" take at least {2 * max_digits}, or fewer digits"
            )
        for name, fraction in (
            ("fact_lists", fact_lists),
            ("manifest_validation_fraction", manifest_validation_fraction),
            ("manifest_test_fraction", manifest_test_fraction),
        ):
            if not 0 <= fraction <= 1:
                raise ValueError(f"{name}: must lie between 0 and 1, but is {fraction}")
        if manifest_validation_fraction + manifest_test_fraction > 1:
            raise ValueError(
                f"manifest_test_fraction: with manifest_validation_fraction={manifest_validation_fraction} it may be at"
                f" most {1 - manifest_validation_fraction:g}, but is {manifest_test_fraction}"
            )
        if image_std is not None and min(image_std) <= 0:
            raise ValueError(f"image_std: must be above 0 for every colour, but is {list(image_std)}")
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

    def setup(self, stage: str | None = None) -> None:
        """Read the manifest, make or load the tokenizer (all ranks; the same result on each of them).

        Args:
            stage: Unused; the parts hold no pixels.

        Raises:
            ValueError: A file cannot be used, or a setting does not fit the tokenizer or the model family.
        """
        if self._parts:
            return
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
            part: Clips(source, self.tokenizer, self.visual, self.max_tokens, part) for part, source in sources.items()
        }

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training part does not fill one batch on every device.
        """
        loader = self._loader("train")
        if not len(loader):
            raise ValueError(
                f"batch_size: {self.batch_size} per device is larger than the training part's"
                f" {len(self._parts['train'])} clips allow; lower it or give more clips"
            )
        return loader

    def val_dataloader(self) -> BatchLoader:
        """Every validation clip once, in order, on any number of devices.

        Raises:
            ValueError: The split of a manifest leaves the part empty.
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
        # Lightning builds the loaders of `predict` anew from the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def score(self, text: str, item: int, part: str) -> SlotScore | None:
        """Count the facts of a clip that a text tells.

        Args:
            text: What a model wrote.
            item: The clip's index in its part, as batches have it in `item`.
            part: `train`, `validation` or `test`.

        Returns:
            Right and asked facts; None for clips of a manifest, whose facts nobody knows.

        Raises:
            ValueError: There is no such part or clip.
        """
        source = self._clips(part, item).source
        return slot_accuracy(text, source.scene(item)) if isinstance(source, Scenes) else None

    def answer(self, item: int, part: str) -> str:
        """The answer that a clip has in the data.

        Args:
            item: The clip's index in its part.
            part: `train`, `validation` or `test`.

        Raises:
            ValueError: There is no such part or clip.
        """
        return self._clips(part, item).source.texts(item)[1]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to know about the data: the tokenizer's identity and the family."""
        return {"family": self.family, "tokenizer": tokenizer_digest(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained with another tokenizer or family.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The token numbers or the visual inputs mean something else in the checkpoint.
        """
        if state_dict["family"] != self.family:
            raise ValueError(f"family: must be the checkpoint's, {state_dict['family']}, but is {self.family}")
        if state_dict["tokenizer"] != tokenizer_digest(self.tokenizer):
            raise ValueError(
                "tokenizer: the checkpoint was trained with another tokenizer than this data gives; set it to the"
                " folder that the training run exported"
            )

    def _clips(self, part: str, item: int) -> Clips:
        if part not in self._parts:
            raise ValueError(f"part: must be one of {', '.join(self._parts) or 'none before setup'}, but is {part!r}")
        clips = self._parts[part]
        if not 0 <= item < len(clips):
            raise ValueError(f"item: must be below {len(clips)}, the clips of the {part} part, but is {item}")
        return clips

    def _evaluation_loader(self, part: str) -> BatchLoader:
        if not len(self._parts[part]):
            name = "test_scenes" if self.manifest is None else f"manifest_{part}_fraction"
            raise ValueError(f"{name}: it leaves the {part} part without clips; raise it")
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
            # the order of training follows seed_everything, as users expect; the scenes do not
            seed=int(os.environ.get("PL_GLOBAL_SEED", self.seed)),
            early=self.list_scenes if self.manifest is None else 0,
        )
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return BatchLoader(clips, sampler, self.num_workers, pin_memory=on_gpu)

    def _scene_sources(self) -> dict[str, Source]:
        sizes = zip(PARTS, (self.scenes, self.validation_scenes, self.test_scenes), strict=True)
        shape = (self.frames, self.height, self.width)
        lists = {"train": (self.fact_lists, self.list_scenes)}
        return {
            part: Scenes(part, count, self.seed, self.max_digits, shape, *lists.get(part, ())) for part, count in sizes
        }

    def _manifest_sources(self, manifest: str) -> dict[str, Source]:
        rows: dict[str, list[ManifestRow]] = {part: [] for part in PARTS}
        for row in read_manifest(manifest):
            fractions = self.manifest_validation_fraction, self.manifest_test_fraction
            rows[part_of(row.name, *fractions, self.seed)].append(row)
        if not rows["train"] and self.tokenizer_source is None:
            raise ValueError(
                "tokenizer: the split of the manifest leaves no training clips to train one on; set it, lower the"
                " fractions or give more clips"
            )
        return {part: Files(own, self.frames) for part, own in rows.items()}


@cache
def _world_texts() -> tuple[str, ...]:
    """Questions and captions that train the tokenizer of the embedded world."""
    source = Scenes("train", _TOKENIZER_SCENES, 0, MAX_DIGITS, (0, 0, 0))
    return tuple(text for item in range(len(source)) for text in source.texts(item))
