"""The job runner with commands that only write files, and the jobs of the GPU rows without running them."""

from __future__ import annotations

import argparse
import sys

import pytest

from benchmarks import trained
from benchmarks.decoding import rows_gpu as decoding_rows
from benchmarks.jobs import Job, Runner, gpus_or_exit, visible_gpus
from benchmarks.video import rows_gpu as video_rows

WRITE = """
import os, pathlib, sys, time
name, broken = sys.argv[1:]
with open("calls", "a") as calls:
    calls.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {name} begins\\n")
time.sleep(0.05)
end = time.monotonic() + 600
while name.startswith("waits") and time.monotonic() < end:  # for another job to begin
    if pathlib.Path("calls").read_text().count("begins") > 1:
        break
    time.sleep(0.01)
with open("calls", "a") as calls:
    calls.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {name} ends\\n")
if name in pathlib.Path(broken).read_text().split():
    sys.exit("it broke")
"""
GPUS = pytest.mark.parametrize("gpus", [["3"], ["0", "1"], ["4", "5", "6", "7"]], ids=len)


@pytest.fixture
def play(tmp_path, monkeypatch, capfd):
    """Runs the names, needs and lanes of jobs with a command that writes to ``calls``, and breaks where told to."""
    monkeypatch.chdir(tmp_path)

    def run(jobs, gpus, broken=()):
        (tmp_path / "calls").write_text("")
        (tmp_path / "broken").write_text(" ".join(broken))
        fake = [Job(job.name, (sys.executable, "-c", WRITE, job.name, "broken"), job.needs, job.lane) for job in jobs]
        status = Runner(fake, tmp_path / "logs", gpus).run()
        calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return status, calls, capfd.readouterr()

    return run


def begun(calls):
    """The jobs in the order in which they were begun, with their GPUs."""
    return {name: gpu for gpu, name, what in calls if what == "begins"}


JOBS = [
    Job("train", ()),
    Job("train-long", (), ("train",)),
    Job("alone", (), lane=1),
    Job("measure", (), ("train-long", "alone"), lane=2),
    Job("report", (), ("measure",), lane=3),
    Job("other", (), lane=3),
]


@GPUS
def test_all_jobs_run_once_after_their_needs_and_on_the_gpus_of_their_lanes(play, gpus):
    status, calls, _ = play(JOBS, gpus)
    assert status == 0
    assert len(calls) == 2 * len(JOBS)
    assert begun(calls) == {job.name: gpus[job.lane % len(gpus)] for job in JOBS}
    at = {(name, what): place for place, (_, name, what) in enumerate(calls)}
    for job in JOBS:
        assert all(at[need, "ends"] < at[job.name, "begins"] for need in job.needs)
    for gpu in gpus:  # one at a time on each
        mine = [(name, what) for one, name, what in calls if one == gpu]
        assert mine == [(name, what) for name, _ in mine[::2] for what in ("begins", "ends")]


def test_gpus_work_at_the_same_time(play):
    _, calls, _ = play([Job("waits", ()), Job("waits-too", (), lane=1)], ["0", "1"])
    assert {what for _, _, what in calls[:2]} == {"begins"}


def test_a_job_that_waits_does_not_stop_its_gpu(play):
    _, calls, _ = play(JOBS, ["0", "1", "2", "3"])
    assert [name for gpu, name, what in calls if gpu == "3" and what == "begins"] == ["other", "report"]


@GPUS
def test_a_failure_costs_only_what_needs_it_and_a_second_call_continues(play, gpus):
    status, calls, told = play(JOBS, gpus, broken=["alone"])
    assert status == 1
    assert set(begun(calls)) == {"train", "train-long", "alone", "other"}
    assert "alone failed with status 1: it broke; the whole output is in " in told.err
    assert told.err.count("alone.log") == 1
    assert "measure is left out: it needs alone, which is not done" in told.err
    assert "report is left out: it needs measure, which is not done" in told.err
    status, calls, _ = play(JOBS, gpus)
    assert status == 0
    assert list(begun(calls)) == ["alone", "measure", "report"]
    status, calls, told = play(JOBS, gpus)
    assert (status, calls) == (0, [])
    assert "train was done before" in told.out


def test_what_needs_a_repeated_job_is_repeated(play, tmp_path):
    play(JOBS, ["0"])
    (tmp_path / "logs" / "train-long.done").unlink()
    _, calls, _ = play(JOBS, ["0"])
    assert list(begun(calls)) == ["train-long", "measure", "report"]


def test_another_command_of_the_same_name_is_not_done(tmp_path):
    for text in ("one", "two", "two"):
        Runner([Job("a", (sys.executable, "-c", f"open('{tmp_path}/{text}', 'a').write('x')"))], tmp_path, ["0"]).run()
    assert [(tmp_path / name).read_text() for name in ("one", "two")] == ["x", "x"]


def test_a_program_that_is_not_there_fails_in_one_line(tmp_path, capsys):
    assert Runner([Job("a", ("/nowhere/program",))], tmp_path, ["0"]).run() == 1
    assert "No such file or directory: '/nowhere/program'; the whole output is in" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_fails_and_nothing_waits_for_it(tmp_path, capsys):
    (tmp_path / "a.log").mkdir()
    jobs = [Job("a", (sys.executable, "-c", "")), Job("b", (sys.executable, "-c", ""), ("a",), lane=1)]
    assert Runner(jobs, tmp_path, ["0", "1"]).run() == 1
    assert "a failed: [Errno 21] Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job("a", ()), Job("a", ())], r"^The job a is there twice: give each job another name\.$"),
        ([Job("a", (), ("b",)), Job("b", ())], r"^The job a needs b, which is not before it: put it before\.$"),
    ],
)
def test_lists_that_cannot_be_run_are_refused(jobs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Runner(jobs, tmp_path, ["0"])


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as end:
        gpus_or_exit(argparse.ArgumentParser())
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("No GPU is visible (torch sees ")
    assert told[0].endswith("CUDA_VISIBLE_DEVICES is ''): make at least one visible.")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible_gpus() == ["2", "5"]


def test_the_decoding_cases():
    made = decoding_rows.jobs("MODEL")
    assert [job.name.removeprefix("decode-") for job in made] == ["7B", "0.5B", "32B", "7B-32k", "7B-batch-16"]
    assert " ".join(made[4].command[1:]) == (
        "-m benchmarks.decoding.decode --model MODEL --device cuda --engine graph --shape 7B --prompt-length 2048 "
        "--prompts 16 --batch 16 --new-tokens 64 --runs 3 --only saccade Autoregressive"
    )
    assert made[0].command[-3:] == ("saccade Autoregressive", "transformers generate", "static cache")


def test_the_video_cases():
    made = video_rows.jobs(video_rows.VideoJobs("T", "D"), video_rows.CASES, 2, 2, 1, ["128x112", "512x112"])
    commands = {job.name: " ".join(job.command[1:]) for job in made}
    assert commands["32B-7B"] == (
        "-m benchmarks.video.speed --target T --draft D --prompts 2 --runs 2 --peer-runs 1 --clips 128x112 512x112 "
        "--target-shape 32B --draft-shape 7B"
    )
    study = "-m benchmarks.video.acceptance --target T --draft D --videos 100 --frames 32"
    assert commands["rules"] == f"{study} --selectors"
    assert commands["selectors"] == f"{study} --rules"
    assert commands["chains-24"].startswith(f"{study} --selectors --draft-length 24 --rules strict LVSpec 0.9,")
    assert {job.name for job in made if job.lane == 0} == {"32B-7B", "32B-3B", "rules"}


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
def test_the_trained_rows_train_what_they_measure(gpus, play):
    made = trained.jobs(gpus)
    trained_first = {"qwen", "qwen-long", "qwen-draft", "qwen-draft-long"}
    for job in made:
        if "benchmarks.video" in " ".join(job.command):
            assert set(job.needs) == {"qwen-long", "qwen-draft-long"}
    assert ("deep-plain" in {job.name for job in made}) == (gpus > 2)
    status, calls, _ = play(made, [str(number) for number in range(gpus)])
    where = begun(calls)
    assert (status, set(where)) == (0, {job.name for job in made})
    assert set(where.values()) == {str(number) for number in range(min(gpus, 4))}
    assert {where[name] for name in ("qwen", "qwen-long", "32B-3B-4k", "32B-3B-16k")} == {"0"}
    assert trained_first < set(where)
    commands = {job.name: " ".join(job.command[1:]) for job in made}
    assert commands["qwen-draft-long"] == (
        "-m saccade.cli.main fit --config video/qwen-draft.yaml --config video/long.yaml --name qwen-draft-long "
        "--model.path runs/qwen-draft/latest/model --model.video_dropout 0.95"
    )
    assert "--prompts 3 --runs 3 --peer-runs 0 --clips 128x112 " in commands["32B-7B-4k"]
    assert "--prompts 2 --runs 3 --peer-runs 0 --clips 512x112 " in commands["7B-3B-16k"]
    assert commands["layer_skip-deep"].endswith("--temperatures 0 0.65 0.68 0.7 --trials 120 --finalists 8 --runs 3")
