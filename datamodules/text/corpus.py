"""TextCorpus: text files, split by file, tokenized, and packed into sequences."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from saccade.common.checks import check_count, check_fraction, check_share
from saccade.common.files import replacing_folder
from saccade.datamodules.loaders import BatchLoader, BatchSampler, PackedSequences
from saccade.datamodules.text.files import PARTS, matching_files, part_of, select, standard_library_files
from saccade.datamodules.text.tokenization import (
    MIN_VOCAB_SIZE,
    load_tokenizer,
    tokenizer_digest,
    train_tokenizer,
)

_LAYOUT = 1  # version of the cache folder; raise it when the stored files change


class TextCorpus(LightningDataModule):
    """Text for training and validating language models.

    The files are split into training, validation and test part by a hash of each file's relative path. So no file is in
    two parts, and files do not change their part when the corpus grows. Each document is followed by the
    end-of-sequence token; the documents of a part are joined and cut into sequences of equal length, without padding.
    The result is kept in a cache folder, under a key made of the contents of all files and the settings.

    Batches are dictionaries: `input_ids` LongTensor [batch, sequence_length]. After `setup`, `tokenizer` is the
    tokenizer. `predict` reads the test part.

    Args:
        paths: Globs of UTF-8 text files (`**` matches any folders). None uses the sources of the Python standard
            library, about 9 MB, which need no download.
        tokenizer: Folder or Hugging Face hub id of a tokenizer. None trains a byte-level BPE tokenizer on the training
            part.
        vocab_size: Size of the vocabulary to train, including special tokens; at least 260. Not used if
            `tokenizer` is given.
        sequence_length: Tokens per sequence; at least 2.
        batch_size: Sequences for each batch and device.
        validation_fraction: Share of the files for validation, above 0.
        test_fraction: Share of the files for test and predict; 0 leaves the test part empty.
        max_files: Most files to use, chosen by the hash; None for all.
        max_bytes: Most bytes of files to use; None for all.
        seed: Seed of the split and of the choice of files. It is independent of `seed_everything`, so that
            runs with different seeds are validated on the same files.
        num_workers: Loader processes; 0 loads in the training process, which is fast enough here.
        cache_dir: Folder for prepared corpora. None means `$XDG_CACHE_HOME/saccade` or `~/.cache/saccade`.

    Raises:
        ValueError: A setting is invalid, no file matches, or a part is empty.
    """

    tokenizer: PreTrainedTokenizerFast

    def __init__(
        self,
        paths: list[str] | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 2048,
        sequence_length: int = 256,
        batch_size: int = 16,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        max_files: int | None = None,
        max_bytes: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if paths is not None and not paths:
            raise ValueError("paths must name files, got an empty list: give globs, or null for Python's own sources.")
        if tokenizer is None:
            check_count("vocab_size", vocab_size, MIN_VOCAB_SIZE, "a byte-level vocabulary needs as many")
        check_count("sequence_length", sequence_length, 2)
        check_count("batch_size", batch_size)
        check_count("num_workers", num_workers, 0)
        for name, limit in (("max_files", max_files), ("max_bytes", max_bytes)):
            if limit is not None:
                check_count(name, limit)
        check_fraction("validation_fraction", validation_fraction)
        check_share("test_fraction", test_fraction)
        if validation_fraction + test_fraction >= 1:
            raise ValueError(
                f"test_fraction must be below {1 - validation_fraction:g} with validation_fraction="
                f"{validation_fraction}, got {test_fraction}: leave files for training."
            )
        self.paths = paths
        self.tokenizer_source = tokenizer
        self.vocab_size = vocab_size
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction
        self.max_files = max_files
        self.max_bytes = max_bytes
        self.seed = seed
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self._parts: dict[str, PackedSequences] = {}
        self._key = ""

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenize the corpus, once on each machine, unless the cache has them."""
        self._prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer and the packed parts (on all ranks).

        Args:
            stage: Not used: all parts are loaded, because they are memory-mapped.

        Raises:
            ValueError: A part has too few tokens for one sequence.
        """
        if self._parts:
            return
        folder = self._prepare()
        self.tokenizer = load_tokenizer(self.tokenizer_source or str(folder / "tokenizer"))
        for part in PARTS:
            tokens = np.load(folder / f"{part}.npy", mmap_mode="r")
            sequences = PackedSequences(tokens, self.sequence_length)
            if not len(sequences) and (part != "test" or self.test_fraction > 0):
                raise ValueError(
                    f"sequence_length must be at most {len(tokens)}, the tokens of the {part} part, got"
                    f" {self.sequence_length}: lower it, or give more text."
                )
            self._parts[part] = sequences
        self._key = folder.name

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training part is too small for one batch on every device.
        """
        loader = self._loader("train")
        if not len(loader):
            raise ValueError(
                f"batch_size must leave one batch for every device, got {self.batch_size} for the"
                f" {len(self._parts['train'])} sequences of the training part: lower it, or give more text."
            )
        return loader

    def val_dataloader(self) -> BatchLoader:
        """Every validation sequence once, in order, on any number of devices."""
        return self._loader("validation")

    def test_dataloader(self) -> BatchLoader:
        """Every test sequence once, in order, on any number of devices.

        Raises:
            ValueError: The corpus was split without a test part.
        """
        if not len(self._parts["test"]):
            raise ValueError("test_fraction must be above 0 to read the test part, got 0: raise it.")
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The same batches as `test_dataloader`."""
        loader = self.test_dataloader()
        # for `predict` Lightning makes a new loader with the arguments of a plain DataLoader
        return DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return the key of the corpus and the digest of the tokenizer, for the checkpoint."""
        return {"corpus": self._key, "tokenizer": tokenizer_digest(self.tokenizer)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint whose model was trained with another tokenizer.

        Args:
            state_dict: What `state_dict` returned.

        Raises:
            ValueError: The tokenizer of the checkpoint differs, so token numbers have another meaning.
        """
        if state_dict["tokenizer"] != tokenizer_digest(self.tokenizer):
            raise ValueError(
                "tokenizer must be that of the checkpoint, got another one (other files, settings or Python version):"
                " set it to the folder that the training run exported."
            )

    def _loader(self, part: str) -> BatchLoader:
        trainer = self.trainer
        sequences = self._parts[part]
        # the order of training depends on seed_everything, the split does not
        seed = int(os.environ.get("PL_GLOBAL_SEED", self.seed))
        sampler = BatchSampler(
            len(sequences),
            self.batch_size,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            train=part == "train",
            seed=seed,
        )
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return BatchLoader(sequences, sampler, self.num_workers, pin_memory=on_gpu)

    def _prepare(self) -> Path:
        """Return the cache folder of this corpus; fill it if necessary."""
        files = standard_library_files() if self.paths is None else matching_files(self.paths)
        files = select(files, self.max_files, self.max_bytes, self.seed)
        documents: dict[str, list[str]] = {part: [] for part in PARTS}
        listing, unreadable = [], []
        for file in files:
            content = file.path.read_bytes()
            part = part_of(file.name, self.validation_fraction, self.test_fraction, self.seed)
            text = content.decode("utf-8", errors="replace")
            documents[part].append(text)
            if self.paths is not None and text.encode() != content:  # a valid file may contain U+FFFD
                unreadable.append(file.name)
            listing.append([file.name, part, hashlib.sha256(content).hexdigest()])
        if unreadable:
            rank_zero_warn(
                f"saccade: {len(unreadable)} of {len(files)} files in paths are not UTF-8, for example {unreadable[0]}:"
                " invalid bytes are read as U+FFFD. Convert the files, or leave them out."
            )
        for part in PARTS:
            if not documents[part] and (part != "test" or self.test_fraction > 0):
                fraction = "validation_fraction" if part == "train" else f"{part}_fraction"
                raise ValueError(
                    f"{fraction} must leave files for the {part} part, got none of {len(files)} files: change it, take"
                    " another seed, or give more files."
                )
        given = None if self.tokenizer_source is None else load_tokenizer(self.tokenizer_source)
        wanted = {
            "layout": _LAYOUT,
            "files": listing,
            "tokenizer": tokenizer_digest(given) if given else [self.vocab_size, tokenizers.__version__],
        }
        key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]
        base = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
        folder = base / "text_corpus" / key
        if not folder.is_dir():
            self._fill(folder, documents, given)
        return folder

    def _fill(self, folder: Path, documents: dict[str, list[str]], given: PreTrainedTokenizerFast | None) -> None:
        """Write the cache folder; another process may write the same content at the same time."""
        advice = "set cache_dir or XDG_CACHE_HOME to a folder that can be written to"
        with replacing_folder(folder, keep=True, advice=advice) as temporary:
            tokenizer = given or train_tokenizer(documents["train"], self.vocab_size)
            if given is None:
                tokenizer.save_pretrained(temporary / "tokenizer")
            for part, texts in documents.items():
                np.save(temporary / f"{part}.npy", encode(tokenizer, texts))


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/saccade`, or `~/.cache/saccade`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saccade"


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> np.ndarray:
    """Join documents into one stream of tokens, each followed by the end-of-sequence token.

    Args:
        tokenizer: With an end-of-sequence token.
        documents: The texts.

    Returns:
        Token numbers, int32 [N].
    """
    separator = np.array([tokenizer.eos_token_id], dtype=np.int32)
    pieces: list[np.ndarray] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(documents, add_special_tokens=False):
        pieces += [np.array(encoding.ids, dtype=np.int32), separator]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
