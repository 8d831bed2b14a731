"""Speed and memory of preparing text: `TextCorpus` beside `datasets` with `tokenizers`, and beside a plain script.

    python -m benchmarks.text.preparation [--sizes 10 100 1000] [--new-tokenizer] [--datasets FOLDER]

The text is one file: the sources of the standard library, or those of `--texts`, repeated until the size is reached,
with every tenth word of each repetition replaced by another one. Each run is a process of its own, and the ways take
turns. `datasets` is no dependency of this project: install it beside it, for example with
`pip install --target FOLDER --no-deps datasets pyarrow pandas dill multiprocess xxhash`, and name that folder.
Speed counts from the first read to the last token on the disk, without imports. Memory is the largest sum over the
processes of a run; pages that processes share count once. Own memory leaves out files that are mapped to memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rows import existing, positive, replace, row
from benchmarks.text.ways import VOCAB_SIZE, WAYS
from saccade.datamodules.text.files import matching_files, standard_library_files
from saccade.datamodules.text.tokenization import train_tokenizer

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000
UNITS = {
    "megabytes_per_second": "MB/s",
    "megabytes_per_cpu_second": "MB/s",
    "peak_memory": "MB",
    "peak_own_memory": "MB",
}
_WHOLE_FILE_MOST = 20 * MEGABYTE  # it needs more than 80 bytes of memory for each byte of text


def make_text(texts: str | None, size: int, target: Path) -> None:
    """Writes a text file of about a size, equal for equal sources.

    Args:
        texts: Folder of text files; ``None`` for the sources of the standard library.
        size: In bytes.
        target: The file to write.
    """
    files = standard_library_files() if texts is None else matching_files([f"{texts}/**/*"])
    whole = "\n".join(file.path.read_bytes().decode(errors="replace") for file in files)
    pieces = re.split(r"(\b[a-z]{4,}\b)", whole)  # every second piece is a word
    words = sorted(set(pieces[1::2]))
    rng = random.Random(0)
    left = size
    with target.open("wb") as file:
        while left > 0:
            for place in rng.sample(range(1, len(pieces), 2), len(pieces) // 20):
                pieces[place] = rng.choice(words)
            content = "".join(pieces).encode()[:left]
            file.write(content.decode(errors="ignore").encode())
            left -= len(content)


class _Memory(threading.Thread):
    """Follows the memory of all processes of a session until the last has ended."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self._session, self._over = session, threading.Event()
        self.peak = {"Pss": 0, "Pss_Anon": 0}

    def run(self) -> None:
        while not self._over.wait(0.25):
            total = dict.fromkeys(self.peak, 0)
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if int((process / "stat").read_text().rpartition(")")[2].split()[3]) != self._session:
                        continue
                    lines = (process / "smaps_rollup").read_text().splitlines()[1:]
                except (OSError, IndexError):  # it has ended
                    continue
                values = dict(line.split()[:2] for line in lines)
                for key in total:
                    total[key] += int(values[f"{key}:"]) * 1024
            self.peak = {key: max(value, total[key]) for key, value in self.peak.items()}

    def stop(self) -> dict[str, int]:
        """Ends the thread and returns the largest sums, in bytes."""
        self._over.set()
        self.join()
        return self.peak


def measured(way: str, file: Path, tokenizer: Path | None, libraries: str | None) -> dict[str, float]:
    """Runs one way in a process of its own.

    Args:
        way: A key of ``WAYS``.
        file: The text.
        tokenizer: Folder of the tokenizer; ``None`` trains one.
        libraries: A folder with further packages.

    Returns:
        A value for each key of ``UNITS``, and the number of tokens.

    Raises:
        SystemExit: The process failed.
    """
    paths = [os.environ.get("PYTHONPATH", ""), str(ROOT), libraries or ""]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [sys.executable, "-m", "benchmarks.text.ways", way, str(file), folder]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            [*command, *([str(tokenizer)] if tokenizer else [])], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment | {"HF_HOME": folder}, text=True, start_new_session=True,
        )  # fmt: skip
        memory = _Memory(process.pid)
        memory.start()
        out, error = process.communicate()
        peak = memory.stop()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        last = (error.strip().splitlines() or ["it printed nothing"])[-1]
        raise SystemExit(f"{way} failed ({last}): see that its packages are installed.")
    found = json.loads(out.splitlines()[-1])
    size = file.stat().st_size / MEGABYTE
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "megabytes_per_second": size / found["seconds"],
        "megabytes_per_cpu_second": size / processor,
        "peak_memory": peak["Pss"] / MEGABYTE,
        "peak_own_memory": peak["Pss_Anon"] / MEGABYTE,
        "tokens": found["tokens"],
    }


def main() -> None:
    """Measures every size, prints a table for each and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[10, 100, 1000], help="megabytes")
    parser.add_argument("--texts", type=existing, help="a folder of text files; the standard library without it")
    parser.add_argument("--new-tokenizer", action="store_true", help="train the tokenizer too")
    parser.add_argument("--datasets", type=existing, help="a folder with the package datasets")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--work", type=existing, help="a folder for texts and tokens, with four times the largest size free"
    )
    parser.add_argument("--runs", type=positive, default=3)
    chosen = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=chosen.work) as work:
        for size in chosen.sizes:
            file = Path(work) / "text.txt"
            make_text(chosen.texts, size * MEGABYTE, file)
            tokenizer = None
            if not chosen.new_tokenizer:
                tokenizer = Path(work) / "tokenizer"
                with file.open(encoding="utf-8") as lines:
                    sample = lines.readlines(5 * MEGABYTE)
                train_tokenizer(sample, VOCAB_SIZE).save_pretrained(tokenizer)
            ways = [
                way for way in chosen.ways if way != "tokenizers, whole file" or size * MEGABYTE <= _WHOLE_FILE_MOST
            ]
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for number in range(chosen.runs):
                for way in ways:  # in turn, so that other load of the machine affects all of them
                    runs[way].append(measured(way, file, tokenizer, chosen.datasets))
                    print(number + 1, way, {key: round(value, 2) for key, value in runs[way][-1].items()}, flush=True)
            case = (
                f"{size:,} MB of text in one file, {'a new' if tokenizer is None else 'a given'} tokenizer of"
                f" {VOCAB_SIZE:,} tokens, {cores} processor core{'s' * (cores > 1)}"
            )
            made = [
                row("text_preparation", case, way, metric, [run[metric] for run in mine], unit)
                for way, mine in runs.items()
                for metric, unit in UNITS.items()
            ]
            replace(made)
            table = Table("way", *UNITS, title=case)
            for way in ways:
                mine = [item for item in made if item["method"] == way]
                table.add_row(way, *(f"{item['value']:.4g}" for item in mine))
            Console(width=150).print(table)


if __name__ == "__main__":
    main()
