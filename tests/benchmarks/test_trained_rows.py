"""The order in which `trained_rows.sh` trains and measures, without doing either."""

import os
import subprocess
from pathlib import Path

import pytest

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
MEASURED = [*SHAPES, "chains", "layer_skip"]


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
            timeout=60,
            check=False,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done, calls, sorted(path.stem for path in (tmp_path / "runs" / "rows").glob("*.done"))

    return run


@pytest.mark.parametrize("gpus", ["0,1", "3"])
def test_everything_is_trained_and_measured_once(rows, gpus):
    done, calls, steps = rows(gpus)
    assert done.returncode == 0, done.stderr
    assert steps == sorted(TRAINED + MEASURED)
    where = {call.split(" ", 1)[1]: call.split(" ", 1)[0] for call in calls}
    assert len(where) == len(calls)
    of_texts = [gpu for call, gpu in where.items() if "deep" in call or "--draft-length" in call]
    of_videos = [gpu for call, gpu in where.items() if "qwen.yaml" in call or "video_speed" in call]
    assert set(of_videos) == {gpus[0]}
    assert set(of_texts) == {gpus[-1]}
    places = list(where)
    trained = max(at for at, call in enumerate(places) if "--name qwen" in call)
    assert all(at > trained for at, call in enumerate(places) if "benchmarks.video" in call)
    done, calls, _ = rows(gpus)
    assert (done.returncode, calls) == (0, [])


@pytest.mark.parametrize("gpus", ["0,1", "3"])
def test_a_failure_costs_what_needs_it_alone_and_a_second_call_goes_on(rows, gpus):
    done, calls, steps = rows(gpus, "--name qwen-draft-long")
    assert done.returncode == 1
    assert "qwen-draft-long failed: it broke; all of it is in runs/rows/qwen-draft-long.log" in done.stderr
    assert steps == ["deep", "layer_skip", "qwen", "qwen-draft", "qwen-long"]
    done, calls, steps = rows(gpus, "--target-shape 32B --draft-shape 3B")
    assert done.returncode == 1
    assert not any("--name qwen-long" in call or "--name deep" in call for call in calls)
    assert sorted({*TRAINED, *MEASURED} - set(steps)) == ["32B-3B-16k", "32B-3B-4k"]
    done, calls, steps = rows(gpus)
    assert done.returncode == 0
    assert len(calls) == 2
