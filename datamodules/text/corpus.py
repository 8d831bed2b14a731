"""TextCorpus: text files, split by file, tokenized, and packed into sequences."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from saccade.common.checks import check_count, check_fraction, check_share
from saccade.common.files import replacing_folder
from saccade.datamodules.loaders import BatchLoader, BatchSampler, PackedSequences, with_a_batch
from saccade.datamodules.text.files import PARTS, CorpusFile, matching_files, select, standard_library_files
from saccade.datamodules.text.places import NamedSequences, shown_names
from saccade.datamodules.text.preparation import Faults, examined, fill
from saccade.datamodules.text.splitting import split
from saccade.datamodules.text.tokenization import (
    MIN_VOCAB_SIZE,
    check_same_tokenizer,
    load_tokenizer,
    tokenizer_digest,
)

_LAYOUT = 3  # version of the cache folder; raise it when the stored files change
_ABANDONED = 24 * 3600  # seconds


class TextCorpus(LightningDataModule):
    """Text for training and validating language models.

    The files are split into training, validation and test part by a hash of each file's relative path. So no file is in
    two parts, and files do not change their part when the corpus grows. Where this would leave a part without files, or
    with less than a tenth of the text that its fraction asks for, as with few files or one large one, every file is cut
    instead: its beginning is for training, its end for validation and test.

    Files are UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is no text. Text that spells a special token
    stays text. Each document is followed by the end-of-sequence token; the documents of a part are joined and cut into
    sequences of equal length, without padding. The result is kept in a cache folder, under a key made of the contents
    of all files and the settings. The memory that preparing takes does not depend on the amount of text.

    Batches are dictionaries: `input_ids` LongTensor [batch, sequence_length]. After `setup`, `tokenizer` is the
    tokenizer. `predict` reads the test part; its batches also have `ids`, the file and the place of each sequence
    (`NamedSequences`).

    Args:
        paths: Globs of text files (`**` matches any folders). None uses the sources of the Python standard
            library, about 9 MB, which need no download.
        tokenizer: Folder or Hugging Face hub id of a tokenizer. None trains a byte-level BPE tokenizer on the training
            part, or on up to 32 MB from all over it.
        vocab_size: Size of the vocabulary to train, including special tokens; at least 260. Not used if
            `tokenizer` is given.
        sequence_length: Tokens per sequence; at least 2.
        batch_size: Sequences for each batch and device.
        validation_fraction: Share of the files, or of every file, for validation, above 0.
        test_fraction: Share for test and predict; 0 leaves the test part empty.
        max_files: Most files to use, chosen by the hash; None for all.
        max_bytes: Most bytes of files to use; None for all.
        seed: Seed of the split and of the choice of files. It is independent of `seed_everything`, so that
            runs with different seeds are validated on the same files.
        num_workers: Loader processes; 0 loads in the training process, which is fast enough here.
        cache_dir: Folder for prepared corpora. None means `$XDG_CACHE_HOME/saccade` or `~/.cache/saccade`.

    Raises:
        ValueError: A setting is invalid, no file matches, or a part has too little text.
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
        if isinstance(paths, str):
            raise ValueError(f"paths must be a list of globs, got {paths!r}: write it as [{paths!r}].")
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
        self._counts: dict[str, int] = {}
        self._key = ""
        self._folder: Path | None = None
        self._files: list[CorpusFile] = []

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenize the corpus, once on each machine, unless the cache has them."""
        self._prepare()

    def setup(self, stage: str | None = None) -> None:
        """Load the tokenizer and the packed parts (on all ranks).

        Args:
            stage: `fit` needs text in the training and the validation part, `validate` in the validation part. The test
                part is checked when it is read.

        Raises:
            ValueError: A part that the stage needs has too few tokens for one sequence.
        """
        if not self._parts:
            folder = self._prepare()
            self.tokenizer = load_tokenizer(self.tokenizer_source or str(folder / "tokenizer"))
            tokens = {part: np.load(folder / f"{part}.npy", mmap_mode="r") for part in PARTS}
            self._counts = {part: len(stream) for part, stream in tokens.items()}
            self._parts = {part: PackedSequences(stream, self.sequence_length) for part, stream in tokens.items()}
            self._key = folder.name
        for part in {"validate": ["validation"], "test": [], "predict": []}.get(stage or "", ["train", "validation"]):
            self._check_length(part)

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches; the incomplete last batch of an epoch is left out.

        Raises:
            ValueError: The training part is too small for one batch on every device.
        """
        what = f"{len(self._parts['train'])} sequences of the training part"
        return with_a_batch(self._loader("train"), self.batch_size, what, "text")

    def val_dataloader(self) -> BatchLoader:
        """Every validation sequence once, in order, on any number of devices."""
        return self._loader("validation")

    def test_dataloader(self) -> BatchLoader:
        """Every test sequence once, in order, on any number of devices.

        Raises:
            ValueError: The corpus was split without a test part, or the part has too few tokens for one sequence.
        """
        if self.test_fraction == 0:
            raise ValueError("test_fraction must be above 0 to read the test part, got 0: raise it.")
        self._check_length("test")
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The batches of `test_dataloader`, with the file and the place of each sequence as `ids`."""
        loader = self.test_dataloader()
        documents = np.load(self._prepare() / "test_documents.npy")
        named = NamedSequences(self._parts["test"], shown_names(self._files), documents)
        # for `predict` Lightning makes a new loader with the arguments of a plain DataLoader
        return DataLoader(named, batch_size=None, sampler=loader.sampler, num_workers=self.num_workers)

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
        check_same_tokenizer(state_dict["tokenizer"], self.tokenizer)

    def _check_length(self, part: str) -> None:
        """Refuse a part without a whole sequence."""
        count = self._counts[part]
        if count < min(self.sequence_length, 2):
            raise ValueError(
                f"paths must name files with more text, got {count} tokens for the {part} part: add text, or raise"
                f" {'test' if part == 'test' else 'validation'}_fraction."
            )
        if count < self.sequence_length:
            raise ValueError(
                f"sequence_length must be at most {count}, the tokens of the {part} part, got {self.sequence_length}:"
                " lower it, or give more text."
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
        if self._folder is not None:
            return self._folder
        files = standard_library_files() if self.paths is None else matching_files(self.paths)
        sources = examined(select(files, self.max_files, self.max_bytes, self.seed), self.trainer)
        parts = split(
            [source.file.name for source in sources],
            [source.size for source in sources],
            self.validation_fraction,
            self.test_fraction,
            self.seed,
        )
        if not parts.by_file:
            rank_zero_info(
                f"saccade: the text cannot be split by file into parts of the wanted sizes (files: {len(sources)}), so"
                f" every file is cut into {self._shares()}."
            )
        given = None if self.tokenizer_source is None else load_tokenizer(self.tokenizer_source)
        wanted = {
            "layout": _LAYOUT,
            "files": [
                [source.file.name, cuts, source.digest] for source, cuts in zip(sources, parts.cuts, strict=True)
            ],
            "tokenizer": tokenizer_digest(given) if given else [self.vocab_size, tokenizers.__version__],
        }
        key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:32]
        base = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
        folder = base / "text_corpus" / key
        if not folder.is_dir():
            _remove_abandoned(folder.parent)
            # another process may write the same content at the same time
            advice = "set cache_dir or XDG_CACHE_HOME to a folder that can be written to"
            with replacing_folder(folder, keep=True, advice=advice) as temporary:
                faults = fill(temporary, sources, parts, given, self.vocab_size, self.trainer)
            self._report(faults, len(sources))
        self._folder, self._files = folder, [source.file for source in sources]
        return folder

    def _shares(self) -> str:
        """The parts in words, with their shares."""
        shares = {
            "training": 1 - self.validation_fraction - self.test_fraction,
            "validation": self.validation_fraction,
            "test": self.test_fraction,
        }
        *others, last = [f"{share:.3g} of {name} text" for name, share in shares.items() if share > 0]
        return f"{', '.join(others)} and {last}"

    def _report(self, faults: Faults, count: int) -> None:
        """Warn of what was found in the user's own files."""
        if self.paths is None:
            return
        if faults.unreadable:
            rank_zero_warn(
                f"saccade: {len(faults.unreadable)} of {count} files in paths are not UTF-8, for example"
                f" {faults.unreadable[0]}: invalid bytes are read as U+FFFD. Convert the files, or leave them out."
            )
        if faults.other_cuts:
            rank_zero_info(
                f"saccade: long texts are encoded in pieces; beside {faults.other_cuts} of the cuts tokens may differ"
                " from those of the whole text, because the tokenizer splits it nowhere near."
            )


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes have left half written: hidden folders in which nothing changed for a day."""
    for half in folder.glob(".*"):
        changes = [path.stat().st_mtime for path in (half, *half.rglob("*")) if path.exists()]
        if max(changes, default=0) < time.time() - _ABANDONED:
            shutil.rmtree(half, ignore_errors=True)


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/saccade`, or `~/.cache/saccade`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saccade"
