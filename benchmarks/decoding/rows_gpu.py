"""The GPU rows of :mod:`benchmarks.decoding.decode` at full size, a process each, over the visible GPUs.

    python -m benchmarks.decoding.rows_gpu MODEL [CASE ...]

MODEL is the folder of a trained Llama, Qwen2 or Qwen3. Without a CASE all are measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.jobs import Job, Runner, add_folder, gpus_or_exit, module
from benchmarks.rows import model_place

OURS = ("saccade Autoregressive",)
PEERS = ("transformers generate", "static cache")
CASES: dict[str, tuple[object, ...]] = {
    "7B": ("--shape", "7B", "--prompt-length", 512, "--prompts", 1, "--new-tokens", 128, "--runs", 3, "--tree",
           "--only", *OURS, *PEERS),
    "0.5B": ("--shape", "0.5B", "--prompt-length", 512, "--prompts", 1, "--new-tokens", 128, "--runs", 3, "--tree",
             "--only", *OURS, *PEERS),
    "32B": ("--shape", "32B", "--prompt-length", 512, "--prompts", 1, "--new-tokens", 64, "--runs", 3,
            "--only", *OURS),
    "7B-32k": ("--shape", "7B", "--prompt-length", 32000, "--prompts", 1, "--new-tokens", 64, "--runs", 3,
               "--only", *OURS),
    "7B-batch-16": ("--shape", "7B", "--prompt-length", 2048, "--prompts", 16, "--batch", 16, "--new-tokens", 64,
                    "--runs", 3, "--only", *OURS),
}  # fmt: skip
"""Arguments of each case."""


def jobs(model: str, cases: Sequence[str] = tuple(CASES)) -> list[Job]:
    """One job for each case, spread over the GPUs."""
    common = ("--model", model, "--device", "cuda", "--engine", "graph")
    return [
        Job(f"decode-{name}", module("benchmarks.decoding.decode", *common, *CASES[name]), lane=lane)
        for lane, name in enumerate(dict.fromkeys(cases))
    ]


def main() -> int:
    """Measures the cases that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=model_place, metavar="MODEL", help="folder of the trained model")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    add_folder(parser, "runs/decode_rows")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.cases if name not in CASES]:
        parser.error(f"CASE must be one of {', '.join(CASES)}, got {unknown[0]}")
    return Runner(jobs(chosen.model, chosen.cases or tuple(CASES)), chosen.folder, gpus_or_exit(parser)).run()


if __name__ == "__main__":
    sys.exit(main())
