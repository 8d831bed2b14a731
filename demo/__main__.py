"""Runs the commands of `make demo`, and prints each of them.

    python -m demo [SETTING ...]

Settings, such as `--trainer.max_steps=50`, are added to every `saccade fit`.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo.smollm2 import NAME, WEIGHTS, UnavailableError, model_folder

MODEL = Path("runs/models") / NAME
ANSWERS = Path("runs/demo-answers.jsonl")
PROMPTS = Path(__file__).with_name("prompts.jsonl")


def real_model(model: Path, settings: Sequence[str]) -> list[list[str]]:
    """The commands of the demo with a model: answers, a draft model trained on them, the comparison.

    Args:
        model: Folder of the model.
        settings: Settings for `saccade fit`.
    """
    prompts = os.path.relpath(PROMPTS)
    folder, draft = str(model), "runs/draft/latest/model"
    many = ["--max_new_tokens", "96", "--batch_size", "28"]
    short = ["--max_prompts", "8", "--max_new_tokens", "48", "--repeats", "2"]
    return [
        ["generate", folder, "--prompts", prompts, "--output", str(ANSWERS), *many],
        ["fit", "--config", "lm/draft.yaml", "--model.path", folder, f"--data.files=[{ANSWERS}]", *settings],
        ["compare", folder, "--draft", draft, *short],
    ]


def small_model(settings: Sequence[str]) -> list[list[str]]:
    """The commands of the demo without a model: two are trained from scratch, on the sources of Python's library.

    Args:
        settings: Settings for `saccade fit`.
    """
    return [
        ["fit", "--config", "lm/demo-draft.yaml", *settings],
        ["fit", "--config", "lm/demo.yaml", *settings],
        ["search-layers", "--config", "search/demo.yaml"],
        ["validate", "--config", "lm/demo.yaml", "--config", "decoding/demo.yaml", "--ckpt_path", "last"],
    ]


def main(settings: Sequence[str]) -> int:
    """Run the demo in the working directory.

    Args:
        settings: Settings for `saccade fit`.

    Returns:
        The exit status: that of the first command that failed, else 0.
    """
    start = time.monotonic()
    try:
        commands, threads = real_model(model_folder(MODEL), settings), None
    except UnavailableError as reason:
        print(f"demo: without {NAME}, because {reason}: a small model is trained from scratch instead", flush=True)
        # a forward of the small model is faster on one thread than on several
        commands, threads = small_model(settings), "1"
    for command in commands:
        print(shlex.join(["saccade", *command]), flush=True)
        one_thread = {"OMP_NUM_THREADS": threads} if threads and command[0] != "fit" else {}
        status = subprocess.run([sys.executable, "-m", "saccade.cli.main", *command], env={**os.environ, **one_thread})
        if status.returncode:
            return status.returncode
    if threads is None:
        print(f"demo: the model of the table is {NAME} ({WEIGHTS}) in {MODEL}, the draft has two of its 30 layers")
    print(f"demo: done in {time.monotonic() - start:.0f} seconds")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
