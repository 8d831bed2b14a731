"""Where the sequences of a corpus come from: the file of each, and the place in it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from saccade.datamodules.loaders import PackedSequences
from saccade.datamodules.text.files import CorpusFile


class NamedSequences(Dataset[dict[str, Any]]):
    """Packed sequences whose batches also have `ids`, which `predictions.csv` shows.

    The id of a sequence is `FILE token N`: the file in which the sequence begins, and the number of tokens of this file
    before it. A sequence that begins with the end of a file is one of that file.

    Args:
        sequences: The sequences.
        names: Name of each file.
        documents: For each document of the stream, in its order, the number of its file, the tokens of the file that
            come before the document, and where the document ends in the stream, int [N, 3].
    """

    def __init__(self, sequences: PackedSequences, names: Sequence[str], documents: np.ndarray) -> None:
        self.sequences = sequences
        length = sequences.sequences.shape[1]
        starts = np.arange(len(sequences)) * length
        files, before, ends = documents.T
        found = np.searchsorted(ends, starts, side="right")
        places = starts - np.concatenate([[0], ends])[found] + before[found]
        self.ids = [f"{names[file]} token {place}" for file, place in zip(files[found], places, strict=True)]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, indices: list[int]) -> dict[str, Any]:
        """Return a whole batch: `input_ids` LongTensor [len(indices), sequence_length], and `ids`, a list of str."""
        return {**self.sequences[indices], "ids": [self.ids[index] for index in indices]}


def shown_names(files: Sequence[CorpusFile]) -> list[str]:
    """Name files by their path behind the fixed part of the glob; by the whole path where two would have one name.

    Args:
        files: The files.

    Returns:
        A name for each.
    """
    count = Counter(file.name for file in files)
    return [file.name if count[file.name] == 1 else file.path.as_posix() for file in files]
