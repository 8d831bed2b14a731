"""The rows of :mod:`benchmarks.video.speed` and :mod:`benchmarks.video.acceptance` at full size, on one GPU or two.

    python -m benchmarks.video.rows_gpu TARGET DRAFT [CASE ...]

TARGET and DRAFT are exported models of a trained Qwen2.5-VL pair. Without a CASE all are measured. With two GPUs the
32B target and the rules have the first one for themselves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.jobs import Job, Runner, add_folder, gpus_or_exit, module
from benchmarks.rows import model_place, positive

PAIRS = {"32B-7B": ("32B", "7B"), "32B-3B": ("32B", "3B"), "7B-3B": ("7B", "3B"), "7B-0.5B": ("7B", "0.5B")}
CASES = (*PAIRS, "rules", "selectors", "chains")
CHAINS = (24, 32)
"""Drafted tokens of the long chains."""
CHAIN_RULES = ("strict", "LVSpec 0.9, ratio 0.3", "ratio 0.3 alone", "ratio 0.4 alone", "ratio 0.5 alone")


@dataclass(frozen=True)
class VideoJobs:
    """Makes the jobs that measure one trained pair.

    Args:
        target: Folder of the target.
        draft: Folder of the draft.
        needs: Jobs that must be done before.
    """

    target: str
    draft: str
    needs: tuple[str, ...] = ()

    def speed(
        self, name: str, pair: str, lane: int, prompts: int, runs: int, peer_runs: int, clips: Iterable[str]
    ) -> Job:
        """The job that measures a pair of shapes.

        Args:
            name: Of the job.
            pair: Name of the shapes, in ``PAIRS``.
            lane: Of the job.
            prompts: Number of prompts.
            runs: Runs of this library's decoders.
            peer_runs: Runs of transformers; 0 leaves it out.
            clips: Clips as ``FRAMESxSIZE``.
        """
        of_target, of_draft = PAIRS[pair]
        command = module(
            "benchmarks.video.speed", "--target", self.target, "--draft", self.draft, "--prompts", prompts,
            "--runs", runs, "--peer-runs", peer_runs, "--clips", *clips, "--target-shape", of_target,
            "--draft-shape", of_draft,
        )  # fmt: skip
        return Job(name, command, self.needs, lane)

    def acceptance(self, name: str, lane: int, *arguments: object) -> Job:
        """The job that measures acceptance on 100 videos with some of the study's parts."""
        pair = ("--target", self.target, "--draft", self.draft, "--videos", 100, "--frames", 32)
        return Job(name, module("benchmarks.video.acceptance", *pair, *arguments), self.needs, lane)

    def chains(self, lane: int) -> list[Job]:
        """The jobs that measure long chains, one for each length."""
        return [
            self.acceptance(
                f"chains-{length}", lane, "--selectors", "--draft-length", length, "--rules", *CHAIN_RULES
            )
            for length in CHAINS
        ]  # fmt: skip


def jobs(
    made: VideoJobs, cases: Sequence[str], prompts: int, runs: int, peer_runs: int, clips: Sequence[str]
) -> list[Job]:
    """The jobs of the named cases; the 32B target and the rules are in lane 0, the others in lane 1."""
    found: list[Job] = []
    for name in dict.fromkeys(cases):
        lane = 0 if name.startswith("32B-") or name == "rules" else 1
        if name in PAIRS:
            found.append(made.speed(name, name, lane, prompts, runs, peer_runs, clips))
        elif name == "chains":
            found += made.chains(lane)
        else:  # an option without a value leaves that part of the study out
            found.append(made.acceptance(name, lane, "--rules" if name == "selectors" else "--selectors"))
    return found


def main() -> int:
    """Measures the cases that are not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=model_place, metavar="TARGET", help="folder of the trained target")
    parser.add_argument("draft", type=model_place, metavar="DRAFT", help="folder of the trained draft")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all where none is named")
    parser.add_argument("--prompts", type=positive, default=2, help="of each pair of shapes")
    parser.add_argument("--runs", type=positive, default=2, help="of this library's decoders at each pair of shapes")
    parser.add_argument("--peer-runs", type=int, default=1, help="of transformers, which takes minutes; 0: none")
    parser.add_argument("--clips", nargs="+", default=["128x112", "512x112"], metavar="FRAMESxSIZE")
    add_folder(parser, "runs/video_rows")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.cases if name not in CASES]:
        parser.error(f"CASE must be one of {', '.join(CASES)}, got {unknown[0]}")
    made = VideoJobs(chosen.target, chosen.draft)
    wanted = jobs(made, chosen.cases or CASES, chosen.prompts, chosen.runs, chosen.peer_runs, chosen.clips)
    return Runner(wanted, chosen.folder, gpus_or_exit(parser)).run()


if __name__ == "__main__":
    sys.exit(main())
