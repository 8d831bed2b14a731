"""MultimodalSentiment: text, sound and pictures of a speaker, with parts taken away while training."""

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

from saccade.datamodules.loaders import BatchLoader, BatchSampler
from saccade.datamodules.multimodal.batch import MODALITIES, Modality, MultimodalBatch
from saccade.datamodules.multimodal.feature_files import (
    SPLITS,
    FeatureFile,
    FeatureSplit,
    check_features,
    read_features,
)
from saccade.datamodules.multimodal.missing.base import UNKNOWN_TOKEN, MissingProtocol
from saccade.datamodules.multimodal.missing.protocols import TwoTierMissing
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment

Task = Literal["regression", "classification"]
Text = Literal["features", "tokens"]
Masks = Literal["derived", "oracle"]

_ROWS = 256  # samples whose statistics are summed at once


class MultimodalSentiment(LightningDataModule):
    """Sentiment of spoken clips from the field's feature files (CMU-MOSI, CMU-MOSEI, CH-SIMS), or from a generator.

    Files have the MMSA layout and are opened without running anything in them; a published file is recognised by its
    SHA-256 sum. Batches are `MultimodalBatch`, features as they are in the file (the model standardises them), cut to
    the longest sequence of the batch. A row of zeros is missing by nature, and marked so. A protocol takes parts away
    from training and validation batches on the device; test and predict batches are left whole.

    After `setup`: `dataset` (a name), `widths` and `statistics` (mean and standard deviation of each feature over
    available rows of the training split) by modality, `classes`, `label_range`, and `splits` (numbers of samples).

    Args:
        path: A feature file. None takes the generator, which needs no download.
        generator: Settings of the generator; None takes its defaults. Unused when `path` is given.
        task: `regression` of the sentiment, or `classification` into the file's classes.
        text: `features` (the file's `text`), or `tokens` (`text_bert`, for a model with a text encoder).
        batch_size: Samples per training batch and device.
        eval_batch_size: Samples per batch and device otherwise.
        masks: How a model learns what is missing. `derived`: from the data alone, as in use: rows of zeros, and unknown
            tokens. `oracle`: from the protocol.
        train_protocol: What is taken away in training, drawn anew in every epoch; None takes `TwoTierMissing`, and
            `NothingMissing` takes nothing.
        validation_protocol: The same for validation, drawn once; None takes `TwoTierMissing`.
        predict_path: File for predict: a split `test`, or the arrays without splits; labels are not needed. None takes
            the test split of `path`.
        seed: Of the order of training batches, where `seed_everything` was not called.
        num_workers: Loader processes; 0 loads in the training process, which is enough for data in memory.

    Raises:
        ValueError: A setting is impossible or a file cannot be used; the message names the setting.
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
            if value not in get_args(known):
                raise ValueError(f"{name}: must be {' or '.join(get_args(known))}, but is {value!r}")
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("seed", seed, 0),
            ("num_workers", num_workers, 0),
        ):
            if number < least:
                raise ValueError(f"{name}: must be at least {least}, but is {number}")
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
        """Numbers of samples of what is loaded: `train`, `valid`, `test`, and `predict` where it has a file."""
        return {name: len(samples) for name, samples in self._samples.items()}

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory (all ranks).

        Args:
            stage: `predict` with a file for it and none for training reads that file only.

        Raises:
            ValueError: A file cannot be used.
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
        for samples, split in ((self._samples[name], name) for name in SPLITS):
            for protocol in (self.train_protocol, self.validation_protocol):
                protocol.prepare(samples.keys, split)

    def _setup_predict(self, path: str) -> None:
        file = read_features(path, self.text, self.task, for_predict=True, setting="predict_path")
        file.splits = {"predict": file.splits["test"]}
        if "train" not in self._samples:
            self._describe(file)
            if self.task == "classification" and self.classes is None:
                raise ValueError(
                    f"predict_path: {path} has no classification_labels, so that nothing says how many classes there"
                    " are; set path to the file that the model was trained on, too"
                )
            # a trained model brings those of its training data
            self.statistics = {
                name: (torch.zeros(width), torch.ones(width))
                for name, width in self.widths.items()
                if name != "text" or self.text == "features"
            }
        elif file.widths != self.widths:
            raise ValueError(
                f"predict_path: must have the widths of path, {self.widths}, but has {file.widths}; extract its"
                " features in the same way"
            )
        self._add(file)

    def _describe(self, file: FeatureFile) -> None:
        """Note what a model must know, and keep the samples."""
        self._add(file)
        self.dataset, self.widths, self.label_range, self.classes = file.dataset, file.widths, file.label_range, None
        known = [split.labels for split in file.splits.values() if split.labels is not None]
        if self.task == "classification" and known:
            self.classes = 1 + max(int(labels.max()) for labels in known)
            if self.classes < 2:
                raise ValueError(
                    "task: classification needs at least two classes, but all labels are 0; use regression"
                )

    def _add(self, file: FeatureFile) -> None:
        for name, split in file.splits.items():
            self._samples[name] = Samples(split, derived=self.masks == "derived")

    def on_after_batch_transfer(self, batch: MultimodalBatch, dataloader_idx: int) -> MultimodalBatch:
        """Take parts away from training and validation batches, on the device.

        Args:
            batch: Whole samples.
            dataloader_idx: Unused.

        Returns:
            The batch with its `complete`; test and predict batches as they are.
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
            ValueError: The training split does not fill one batch on every device.
        """
        loader = self._loader("train")
        if not len(loader):
            raise ValueError(
                f"batch_size: {self.batch_size} per device is larger than the training split's"
                f" {len(self._samples['train'])} samples allow; lower it or give more data"
            )
        return loader

    def val_dataloader(self) -> BatchLoader:
        """Every validation sample once, in order, on any number of devices."""
        return self._loader("valid")

    def test_dataloader(self) -> BatchLoader:
        """Every test sample once, in order, on any number of devices."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Every sample of `predict_path`, or of the test split, once and in order."""
        loader = self._loader("test" if self.predict_path is None else "predict")
        # Lightning builds the loaders of `predict` anew from the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def ids(self, split: str) -> list[str]:
        """The ids of a split's samples, in their order.

        Args:
            split: One of `splits`.

        Raises:
            ValueError: It is not loaded.
        """
        if split not in self._samples:
            raise ValueError(
                f"split: must be one of {', '.join(self._samples) or 'none before setup'}, but is {split!r}"
            )
        return list(self._samples[split].names.values())

    def sample_ids(self, keys: Tensor) -> list[str]:
        """The ids of samples.

        Args:
            keys: Their keys, as a batch has them [B].

        Raises:
            ValueError: There is no such sample.
        """
        known = {key: name for samples in self._samples.values() for key, name in samples.names.items()}
        try:
            return [known[key] for key in keys.tolist()]
        except KeyError as error:
            raise ValueError(f"keys: no sample has the key {error}; take keys from batches of this data") from error

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to know about the data: what a model for it must fit."""
        return {
            "dataset": self.dataset,
            "task": self.task,
            "text": self.text,
            "widths": self.widths,
            "classes": self.classes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained on data of another kind.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The model cannot take these samples.
        """
        now = self.state_dict()
        for name in ("task", "text", "widths", "classes"):
            if state_dict[name] != now[name]:
                raise ValueError(
                    f"{name}: the checkpoint was trained on {state_dict['dataset']} with {state_dict[name]}, but the"
                    f" data has {now[name]}; use the data it was trained on, or data like it"
                )

    def _loader(self, split: str) -> BatchLoader:
        trainer = self.trainer
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
    """A split in memory, as tensors that are made once; batches are picked out of them.

    Args:
        split: The samples.
        derived: Whether unknown tokens count as missing.
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
            # what lies in the padding of a file is nobody's business; samples one by one, not to copy all of them
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
        """Return a whole batch, without the padding that all its samples share."""
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
        """Mean and standard deviation of each feature over available rows, by modality; none for token numbers.

        A feature that is constant has the deviation 1: any smaller floor would blow up its first other value, or what
        rounding leaves of it.
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
    """The number by which protocols and tables know a sample: the first 63 bits of its id's SHA-256 sum.

    Args:
        name: The sample's id.
    """
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") >> 1


def derive_availability(batch: MultimodalBatch) -> MultimodalBatch:
    """Say what is missing from the values alone, as one has to in use.

    Args:
        batch: Whose missing rows are zeros, and whose missing tokens are unknown ones.

    Returns:
        The same with `available` 1 at valid positions that are special or not missing, 0 elsewhere.
    """
    modalities = {
        name: replace(modality, available=_availability(modality)) for name, modality in batch.modalities.items()
    }
    return replace(batch, modalities=modalities)


def _availability(modality: Modality) -> Tensor:
    values = modality.values
    # one sample after the other would be slow on a device, and all of a large split do not fit twice
    parts = values.split(_ROWS) if values.device.type == "cpu" else (values,)
    there = torch.cat([(part != 0).any(-1) if part.ndim == 3 else part != UNKNOWN_TOKEN for part in parts])
    return (modality.valid & (there | modality.special)).float()
