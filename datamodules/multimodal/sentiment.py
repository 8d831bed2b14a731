"""MultimodalSentiment: text, sound and pictures of a speaker, with missing data in training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.common.checks import check_choice, check_count
from saccade.datamodules.loaders import BatchLoader, BatchSampler, with_a_batch
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.feature_files import FeatureFile, check_features, read_features
from saccade.datamodules.multimodal.feature_part import FeatureSplit
from saccade.datamodules.multimodal.missing.base import UNKNOWN_TOKEN, MissingProtocol
from saccade.datamodules.multimodal.missing.protocols import TwoTierMissing
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment

Task = Literal["regression", "classification"]
Text = Literal["features", "tokens"]
Masks = Literal["derived", "oracle"]

_ROWS = 256  # samples for each step of a sum, to limit the memory


class MultimodalSentiment(LightningDataModule):
    """Sentiment of spoken clips, from published feature files (CMU-MOSI, CMU-MOSEI, CH-SIMS) or from a generator.

    Files have the MMSA layout. They are read without executing the code that a pickle may contain; a published file is
    recognised by its SHA-256. Batches are `MultimodalBatch`, with the features of the file (the model standardises
    them), cut to the longest sequence of the batch. A row of zeros in the file counts as missing. A protocol erases
    data of training and validation batches on the device; test and predict batches stay complete.

    After `setup`: `dataset` (a name), `widths` and `statistics` (mean and standard deviation of each feature over
    available rows of the training split) by modality, `classes`, `label_range`, and `splits` (numbers of samples).

    Args:
        path: A feature file. None uses the generator, which needs no download.
        generator: Settings of the generator; None for the default ones. Not used if `path` is given.
        task: `regression` of the sentiment, or `classification` into the classes of the file.
        text: `features` (`text` of the file), or `tokens` (`text_bert`, for a model with a text encoder).
        batch_size: Samples for each training batch and device.
        eval_batch_size: Samples for each validation, test or predict batch and device.
        masks: How the model is told what is missing. `derived`: from the data alone, as in deployment: rows of zeros
            and unknown tokens count as missing. `oracle`: from the protocol.
        train_protocol: What is erased in training, with new draws in every epoch; None for `TwoTierMissing`.
            `NothingMissing` erases nothing.
        validation_protocol: What is erased in validation, the same in every epoch; None for `TwoTierMissing`.
        predict_path: File for predict: a split `test`, or arrays without splits; labels are not needed. None uses the
            test split of `path`.
        seed: Seed of the order of training batches, if `seed_everything` was not called.
        num_workers: Loader processes; 0 loads in the training process, which is fast enough for data in memory.

    Raises:
        ValueError: A setting or a file is invalid.
    """

    dataset: str
    widths: dict[str, int]
    classes: int | None
    label_range: float
    statistics: dict[str, tuple[Tensor, Tensor]]

    def __init__(
        self,
        path: str | None = None,
        generator: SyntheticSentiment | None = None,
        task: Task = "regression",
        text: Text = "features",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        masks: Masks = "derived",
        train_protocol: MissingProtocol | None = None,
        validation_protocol: MissingProtocol | None = None,
        predict_path: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value, known in (("task", task, Task), ("text", text, Text), ("masks", masks, Masks)):
            check_choice(name, value, get_args(known))
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            check_count(name, number, least)
        self.path = path
        self.generator = generator
        self.task = task
        self.text = text
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.masks = masks
        self.train_protocol = TwoTierMissing() if train_protocol is None else train_protocol
        self.validation_protocol = TwoTierMissing() if validation_protocol is None else validation_protocol
        self.predict_path = predict_path
        self.seed = seed
        self.num_workers = num_workers
        self._samples: dict[str, Samples] = {}

    @property
    def splits(self) -> dict[str, int]:
        """Number of samples of each loaded split: `train`, `valid`, `test`, and `predict` if it has a file."""
        return {name: len(samples) for name, samples in self._samples.items()}

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory (on all ranks).

        Args:
            stage: For `predict` with `predict_path` and without `path`, only the former is read.

        Raises:
            ValueError: A file is invalid.
        """
        only_predict = stage == "predict" and self.predict_path is not None and self.path is None
        if "train" not in self._samples and not only_predict:
            self._setup_training()
        if stage == "predict" and self.predict_path is not None and "predict" not in self._samples:
            self._setup_predict(self.predict_path)

    def _setup_training(self) -> None:
        if self.path is None:
            raw = (self.generator or SyntheticSentiment()).generate()
            file = check_features(raw, "generator", self.text, self.task)
            file.dataset, file.label_range = "synthetic", 3.0
        else:
            file = read_features(self.path, self.text, self.task)
        self._describe(file)
        self.statistics = self._samples["train"].statistics()
        for split, samples in self._samples.items():
            for protocol in (self.train_protocol, self.validation_protocol):
                protocol.prepare(samples.keys, split)

    def _setup_predict(self, path: str) -> None:
        file = read_features(path, self.text, self.task, for_predict=True, setting="predict_path")
        file.splits = {"predict": file.splits["test"]}
        if "train" not in self._samples:
            self._describe(file)
            if self.task == "classification" and self.classes is None:
                raise ValueError(
                    f"predict_path must have classification_labels to know the number of classes, got {path} without:"
                    " set path to the file of the training, too."
                )
            # a trained model has the statistics of its training data
            self.statistics = {
                name: (torch.zeros(width), torch.ones(width))
                for name, width in self.widths.items()
                if name != "text" or self.text == "features"
            }
        elif file.widths != self.widths:
            raise ValueError(
                f"predict_path must have the widths of path, {self.widths}, got {file.widths}: extract the features in"
                " the same way."
            )
        self._add(file)

    def _describe(self, file: FeatureFile) -> None:
        """Store the properties of the data that a model needs, and the samples."""
        self._add(file)
        self.dataset, self.widths, self.label_range, self.classes = file.dataset, file.widths, file.label_range, None
        known = [split.labels for split in file.splits.values() if split.labels is not None]
        if self.task == "classification" and known:
            self.classes = 1 + max(int(labels.max()) for labels in known)
            if self.classes < 2:
                raise ValueError(
                    "task classification needs at least two classes, got only the label 0: use regression."
                )

    def _add(self, file: FeatureFile) -> None:
        for name, split in file.splits.items():
            self._samples[name] = Samples(split, derived=self.masks == "derived")

    def on_after_batch_transfer(self, batch: MultimodalBatch, dataloader_idx: int) -> MultimodalBatch:
        """Erase data of training and validation batches, on the device.

        Args:
            batch: Complete samples.
            dataloader_idx: Not used.

        Returns:
            The batch without the erased data, with the given one as `complete`; test and predict batches unchanged.
        """
        trainer = self.trainer
        if trainer is None:
            return batch
        if trainer.training:
            corrupted = self.train_protocol.training(batch, trainer.current_epoch)
        elif trainer.validating or trainer.sanity_checking:
            corrupted = self.validation_protocol.validation(batch)
        else:
            return batch
        return derive_availability(corrupted) if self.masks == "derived" else corrupted

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training split is too small for one batch on every device.
        """
        what = f"{len(self._samples['train'])} samples of the training split"
        return with_a_batch(self._loader("train"), self.batch_size, what, "data")

    def val_dataloader(self) -> BatchLoader:
        """Every validation sample once, in order, on any number of devices."""
        return self._loader("valid")

    def test_dataloader(self) -> BatchLoader:
        """Every test sample once, in order, on any number of devices.

        Raises:
            ValueError: The file has no test split.
        """
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every sample of `predict_path`, or of the test split, once and in order.

        Raises:
            ValueError: There is no `predict_path`, and the file has no test split.
        """
        loader = self._loader("test" if self.predict_path is None else "predict")
        # for `predict` Lightning makes a new loader with the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def ids(self, split: str) -> list[str]:
        """Return the ids of the samples of a split, in order.

        Args:
            split: One of `splits`.

        Raises:
            ValueError: The split is not loaded.
        """
        if split not in self._samples:
            raise ValueError(
                f"split must be one of {', '.join(self._samples) or 'none before setup'}, got {split!r}: choose one."
            )
        return list(self._samples[split].names.values())

    def sample_ids(self, keys: Tensor) -> list[str]:
        """Return the ids of samples.

        Args:
            keys: Keys of the samples, as in batches [B].

        Raises:
            ValueError: No sample has such a key.
        """
        known = {key: name for samples in self._samples.values() for key, name in samples.names.items()}
        try:
            return [known[key] for key in keys.tolist()]
        except KeyError as error:
            raise ValueError(f"keys must be those of loaded samples, got {error}: take keys from batches.") from error

    def state_dict(self) -> dict[str, Any]:
        """Return the properties of the data that a model depends on, for the checkpoint."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "text": self.text,
            "widths": self.widths,
            "classes": self.classes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained on data with other properties.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The model does not fit these samples.
        """
        now = self.state_dict()
        for name in ("task", "text", "widths", "classes"):
            if state_dict[name] != now[name]:
                raise ValueError(
                    f"{name} must be that of the checkpoint, {state_dict[name]} of {state_dict['dataset']}, got"
                    f" {now[name]}: use the data of the training, or data with the same properties."
                )

    def _loader(self, split: str) -> BatchLoader:
        trainer = self.trainer
        if split not in self._samples:
            raise ValueError(
                f"path must be a file with the split {split}, got {self.path} with {', '.join(self._samples)}: add the"
                " split, or set predict_path to predict other samples."
            )
        samples = self._samples[split]
        train = split == "train"
        sampler = BatchSampler(
            len(samples),
            self.batch_size if train else self.eval_batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            train=train,
            seed=int(os.environ.get("PL_GLOBAL_SEED", self.seed)),
        )
        return BatchLoader(samples, sampler, self.num_workers, pin_memory=False)


class Samples(Dataset[MultimodalBatch]):
    """A split as tensors in memory, from which batches are taken.

    Args:
        split: The samples.
        derived: Count unknown tokens as missing.
    """

    def __init__(self, split: FeatureSplit, derived: bool) -> None:
        keys = [sample_key(name) for name in split.ids]
        self.names = dict(zip(keys, split.ids, strict=True))
        self.keys = torch.tensor(keys)
        self.labels = None if split.labels is None else torch.from_numpy(split.labels)
        self.modalities: dict[str, Modality] = {}
        self.lengths: dict[str, Tensor] = {}
        for name in MODALITIES:
            values, valid = torch.from_numpy(split.values[name]), torch.from_numpy(split.valid[name].copy())
            special = torch.zeros_like(valid)
            if name == "text" and split.special is not None:
                special = torch.from_numpy(split.special)
            # padding is set to zero, one sample at a time, so that not all of them are copied
            for sample, there in zip(values, valid, strict=True):
                sample[~there] = 0
            modality = Modality(values, valid, valid.float(), special)
            if derived or values.ndim == 3:
                modality = replace(modality, available=_availability(modality))
            self.modalities[name] = modality
            self.lengths[name] = modality.lengths

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, indices: Sequence[int]) -> MultimodalBatch:
        """Return a whole batch, cut to its longest sequence."""
        rows = torch.as_tensor(indices)
        modalities = {}
        for name, whole in self.modalities.items():
            length = max(1, int(self.lengths[name][rows].max()))
            modalities[name] = Modality(
                *(
                    tensor[:, :length].index_select(0, rows)
                    for tensor in (whole.values, whole.valid, whole.available, whole.special)
                )
            )
        labels = None if self.labels is None else self.labels[rows]
        return MultimodalBatch(modalities, labels, self.keys[rows])

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of each feature over available rows, by modality, except for token ids.

        The deviation of a constant feature is 1: a small value would amplify rounding errors and other values.
        """
        found = {}
        for name, modality in self.modalities.items():
            if modality.values.ndim == 3:
                parts = list(zip(modality.values.split(_ROWS), modality.available.split(_ROWS), strict=True))
                count = max(1.0, sum(float((there > 0).sum()) for _, there in parts))
                mean = torch.stack([values[there > 0].double().sum(0) for values, there in parts]).sum(0) / count
                squares = [(values[there > 0].double() - mean).square().sum(0) for values, there in parts]
                std = (torch.stack(squares).sum(0) / count).sqrt()
                constant = std <= 1e-6 * mean.abs().clamp(min=1)
                found[name] = (mean.float(), torch.where(constant, torch.ones_like(std), std).float())
        return found


def sample_key(name: str) -> int:
    """The key of a sample in protocols and tables: the first 63 bits of the SHA-256 of its id.

    Args:
        name: The id of the sample.
    """
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") >> 1


def derive_availability(batch: MultimodalBatch) -> MultimodalBatch:
    """Derive what is missing from the values alone, as in deployment.

    Args:
        batch: Samples in which missing rows are zeros, and missing tokens are unknown tokens.

    Returns:
        The samples with `available` 1 at valid positions that are special or not missing, 0 elsewhere.
    """
    modalities = {
        name: replace(modality, available=_availability(modality)) for name, modality in batch.modalities.items()
    }
    return replace(batch, modalities=modalities)


def _availability(modality: Modality) -> Tensor:
    values = modality.values
    # in parts only on the CPU, where a large split does not fit in memory twice
    parts = values.split(_ROWS) if values.device.type == "cpu" else (values,)
    there = torch.cat([(part != 0).any(-1) if part.ndim == 3 else part != UNKNOWN_TOKEN for part in parts])
    return (modality.valid & (there | modality.special)).float()
