"""One way to make tokens of a text file, run in a process of its own by :mod:`benchmarks.text.preparation`.

    python -m benchmarks.text.ways WAY FILE FOLDER [TOKENIZER]

Without a tokenizer one is trained on the file. The last line printed is a JSON object with the seconds of the work,
imports left out, and the number of tokens.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCAB_SIZE = 2048
LENGTH = 256

Way = Callable[[str, str, str | None], Callable[[], int]]


def text_corpus(file: str, folder: str, tokenizer: str | None) -> Callable[[], int]:
    """What `saccade fit` does before its first step."""
    import numpy as np

    from saccade.datamodules import TextCorpus

    def work() -> int:
        corpus = TextCorpus([file], tokenizer, VOCAB_SIZE, LENGTH, cache_dir=folder)
        corpus.prepare_data()
        return sum(len(np.load(path, mmap_mode="r")) for path in Path(folder).rglob("*.npy"))

    return work


def with_datasets(file: str, folder: str, tokenizer: str | None) -> Callable[[], int]:
    """`datasets` as in the example scripts of transformers: rows of lines, and `map` on all cores."""
    import datasets  # type: ignore[import-not-found]
    from transformers import AutoTokenizer

    from saccade.datamodules.text.tokenization import train_tokenizer

    datasets.disable_progress_bars()
    cores = len(os.sched_getaffinity(0))

    def work() -> int:
        raw = datasets.load_dataset("text", data_files=file, split="train", keep_linebreaks=True, cache_dir=folder)
        if tokenizer is None:
            lines = (line for rows in raw.iter(1000) for line in rows["text"])
            fast = train_tokenizer(lines, VOCAB_SIZE)
        else:
            fast = AutoTokenizer.from_pretrained(tokenizer)

        def encode(rows: dict[str, Any]) -> Any:
            return fast(rows["text"])

        def group(rows: dict[str, Any]) -> dict[str, Any]:
            joined = {key: list(itertools.chain(*values)) for key, values in rows.items()}
            total = len(joined["input_ids"]) // LENGTH * LENGTH
            return {key: [ids[i : i + LENGTH] for i in range(0, total, LENGTH)] for key, ids in joined.items()}

        encoded = raw.map(encode, batched=True, num_proc=cores, remove_columns=["text"])
        return len(encoded.map(group, batched=True, num_proc=cores)) * LENGTH

    return work


def whole_file(file: str, folder: str, tokenizer: str | None) -> Callable[[], int]:
    """A few lines with `tokenizers`: all lines are encoded at once, and the ids saved."""
    import numpy as np
    from tokenizers import Tokenizer

    from saccade.datamodules.text.tokenization import train_tokenizer

    def work() -> int:
        lines = Path(file).read_text(encoding="utf-8").splitlines(keepends=True)
        if tokenizer is None:
            fast = train_tokenizer(lines, VOCAB_SIZE).backend_tokenizer
        else:
            fast = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
        ids = np.concatenate([np.array(one.ids, dtype=np.int32) for one in fast.encode_batch(lines)])
        np.save(Path(folder) / "ids.npy", ids)
        return len(ids)

    return work


WAYS: dict[str, Way] = {
    "TextCorpus": text_corpus,
    "datasets + tokenizers": with_datasets,
    "tokenizers, whole file": whole_file,
}


def main() -> None:
    """Does the work of one way and says how long it took."""
    way, file, folder, *tokenizer = sys.argv[1:]
    work = WAYS[way](file, folder, tokenizer[0] if tokenizer else None)
    start = time.perf_counter()
    tokens = work()
    print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
