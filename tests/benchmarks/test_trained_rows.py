"""The order in which `trained_rows.sh` trains and measures, without doing either."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import TIME_LIMIT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trained_rows.sh"
PYTHON = """#!/usr/bin/env bash
if [[ $1 == -c ]]; then echo "/packages"; exit; fi
echo "${CUDA_VISIBLE_DEVICES:-} $*" >> calls
[[ -n ${BREAKS:-} && "$*" == *$BREAKS* ]] && { echo "it broke"; exit 1; }
if [[ $* == *"--name "* ]]; then name=${*##*--name }; mkdir -p "runs/${name%% *}/latest/model"; fi
exit 0
"""
TRAINED = ["qwen", "qwen-long", "qwen-draft", "qwen-draft-long", "deep"]
SHAPES = [f"{pair}-{length}" for pair in ("32B-3B", "32B-7B", "7B-3B") for length in ("4k", "16k")]
MEASURED = [*SHAPES, "chains", "layer_skip-deep"]
THIRD = ["deep-plain", "layer_skip-deep-plain"]


@pytest.fixture
def rows(tmp_path):
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "video_rows.sh").write_text(SCRIPT.with_name("video_rows.sh").read_text())

    def run(gpus, breaks=""):
        (tmp_path / "calls").write_text("")
        environment = os.environ | {
            "PATH": f"{fake.parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": gpus,
            "BREAKS": breaks,
        }
        done = subprocess.run(
            ["bash", str(SCRIPT)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
            check=False,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done, calls, sorted(path.stem for path in (tmp_path / "runs" / "rows").glob("*.done"))

    return run


def steps_of(gpus):
    return {*TRAINED, *MEASURED, *(THIRD if gpus.count(",") > 1 else [])}


GPUS = pytest.mark.parametrize("gpus", ["3", "0,1", "0,1,2", "4,5,6,7"])


def test_without_a_gpu_nothing_is_done_and_one_line_says_so(rows):
    done, calls, steps = rows("")
    assert (done.returncode, calls, steps) == (2, [], [])
    assert done.stderr.splitlines() == [
        "there is no GPU to train on: CUDA_VISIBLE_DEVICES is empty, or torch sees none; give it at least one"
    ]


@GPUS
def test_everything_is_trained_and_measured_once(rows, gpus):
    done, calls, steps = rows(gpus)
    assert done.returncode == 0, done.stderr
    assert set(steps) == steps_of(gpus)
    where = {call.split(" ", 1)[1]: call.split(" ", 1)[0] for call in calls}
    assert len(where) == len(calls)
    assert set(where.values()) == set(gpus.split(","))
    assert {gpu for call, gpu in where.items() if "qwen.yaml" in call or "32B --draft-shape 3B" in call} == {gpus[0]}
    assert {gpu for call, gpu in where.items() if "runs/deep/" in call} == {gpus.split(",")[1 % len(gpus.split(","))]}
    places = list(where)
    trained = max(at for at, call in enumerate(places) if "--name qwen" in call)
    assert all(at > trained for at, call in enumerate(places) if "benchmarks.video" in call)
    done, calls, _ = rows(gpus)
    assert (done.returncode, calls) == (0, [])


@GPUS
def test_a_failure_costs_what_needs_it_alone_and_a_second_call_goes_on(rows, gpus):
    done, calls, steps = rows(gpus, "--name qwen-draft-long")
    assert done.returncode == 1
    assert "qwen-draft-long failed: it broke; all of it is in runs/rows/qwen-draft-long.log" in done.stderr
    assert set(steps) == steps_of(gpus) - {"qwen-draft-long", "chains", *SHAPES}
    done, calls, steps = rows(gpus, "--target-shape 32B --draft-shape 3B")
    assert done.returncode == 1
    assert not any("--name qwen-long" in call or "--name deep" in call for call in calls)
    assert steps_of(gpus) - set(steps) == {"32B-3B-16k", "32B-3B-4k"}
    done, calls, steps = rows(gpus)
    assert done.returncode == 0
    assert len(calls) == 2
