"""Trains the models of ``video_speed``, ``video_acceptance`` and ``layer_skip``, then measures them, on 1 to 4 GPUs.

    python -m benchmarks.trained

The video pair and the deep language model are trained at the same time where there are two GPUs. With three or more,
the deep model is also trained without sub-layer dropout.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig

from benchmarks.jobs import Job, Runner, add_folder, gpus_or_exit, module
from benchmarks.video.rows_gpu import VideoJobs

LENGTHS = {"4k": (3, "128x112"), "16k": (2, "512x112")}
"""Prompts and clips of each length of video."""


def video(name: str, config: str, lane: int, *long_arguments: str) -> list[Job]:
    """The jobs that train a video model, first on short videos, then on long ones."""
    short = Job(name, module("saccade.cli.main", "fit", "--config", config, "--name", name), lane=lane)
    command = module(
        "saccade.cli.main", "fit", "--config", config, "--config", "video/long.yaml", "--name", f"{name}-long",
        "--model.path", f"runs/{name}/latest/model", *long_arguments,
    )  # fmt: skip
    return [short, Job(f"{name}-long", command, (name,), lane)]


def layer_skip(name: str, label: str, lane: int, *settings: str) -> list[Job]:
    """The jobs that train the deep language model, and measure what skipping its layers gains."""
    packages = sysconfig.get_paths()["purelib"]
    train = module(
        "saccade.cli.main", "fit", "--config", "lm/deep.yaml", "--data.paths", f"['{packages}/**/*.py']",
        "--name", name, *settings,
    )  # fmt: skip
    measure = module(
        "benchmarks.decoding.layer_skip", "--model", f"runs/{name}/latest/model", "--label", label,
        "--temperatures", 0, 0.65, 0.68, 0.7, "--trials", 120, "--finalists", 8, "--runs", 3,
    )  # fmt: skip
    return [Job(name, train, lane=lane), Job(f"layer_skip-{name}", measure, (name,), lane)]


def jobs(gpus: int, peer_runs: int = 0) -> list[Job]:
    """All jobs, for a number of GPUs.

    Args:
        gpus: How many there are.
        peer_runs: Runs of transformers at the pairs of shapes.
    """
    pair = VideoJobs(
        "runs/qwen-long/latest/model", "runs/qwen-draft-long/latest/model", ("qwen-long", "qwen-draft-long")
    )

    def lengths(shapes: str, lane: int) -> list[Job]:
        return [
            pair.speed(f"{shapes}-{name}", shapes, lane, prompts, 3, peer_runs, [clips])
            for name, (prompts, clips) in LENGTHS.items()
        ]

    plain = layer_skip("deep-plain", "no sub-layer dropout", 2, "--model.sublayer_dropout", "0") if gpus > 2 else []
    return [
        *video("qwen", "video/qwen.yaml", 0),
        *video("qwen-draft", "video/qwen-draft.yaml", 3 if gpus > 3 else 1, "--model.video_dropout", "0.95"),
        *lengths("32B-3B", 0),
        *layer_skip("deep", "sub-layer dropout 0.85", 1),
        *plain,
        *lengths("32B-7B", 2),
        *pair.chains(3),
        *lengths("7B-3B", 3),
    ]


def main() -> int:
    """Trains and measures what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-runs", type=int, default=0, help="of transformers, which takes minutes; 0: none")
    add_folder(parser, "runs/rows")
    chosen = parser.parse_args()
    gpus = gpus_or_exit(parser)
    return Runner(jobs(len(gpus), chosen.peer_runs), chosen.folder, gpus).run()


if __name__ == "__main__":
    sys.exit(main())
