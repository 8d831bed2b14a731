"""`saccade compare` measures a model without a file of settings, and leaves one behind that repeats the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from saccade.cli.main import main
from tests.support.chat_models import chat_model, vision_chat_model, write_prompts

ROWS = [
    {"prompt": "hello fox", "category": "a"},
    {"prompt": "two and two?", "category": "b", "answer": "4"},
    {"turns": ["one", "quick"], "category": "b"},
]
QUICK = ["--max_new_tokens", "4", "--repeats", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with a model, a draft for it, and a file of prompts."""
    folder = tmp_path_factory.mktemp("models")
    chat_model(folder / "model", layers=3)
    chat_model(folder / "draft", layers=1)
    write_prompts(folder / "p.jsonl", ROWS)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch) -> Path:
    for name in ("SACCADE_RUN_FOLDER", "SACCADE_CKPT_PATH", "PL_GLOBAL_SEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("model", "draft", "p.jsonl"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def results(place: Path, name: str = "compare") -> tuple[Path, list[dict]]:
    folder = max(path for path in (place / "runs" / name).iterdir())
    return folder, json.loads((folder / "decoding.json").read_text())


def test_one_command_and_the_settings_that_repeat_it(here, capsys):
    arguments = ["compare", "model", "--draft", "draft", "--prompts", "p.jsonl", "--dtype", "float64", *QUICK]
    assert main(arguments) == 0, capsys.readouterr().err
    folder, rows = results(here)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "decoding.json", "decoding.png", "provenance.json",
    ]  # fmt: skip
    names = ["autoregressive", "transformers", "prompt_lookup", "self_speculative", "assisted"]
    assert [(row["name"], row["category"]) for row in rows] == [
        (name, kind) for name in names for kind in (None, "a", "b")
    ]
    for row in rows:
        assert row["statistics"]["requests"] == 2 * {None: 4, "a": 1, "b": 3}[row["category"]]
        assert row["agreement"]["differing_rows"] == 0
        assert row["dtype"] == "float64"
    said = capsys.readouterr()
    assert "assisted" in said.out
    assert f"repeat with: saccade validate --config {folder.relative_to(here) / 'config.yaml'}" in said.err
    assert "val_loss" not in said.out + said.err
    assert "no --ckpt_path" not in said.err

    assert main(["validate", "--config", str(folder / "config.yaml")]) == 0
    again, repeated = results(here)
    assert again != folder
    for row, other in zip(rows, repeated, strict=True):
        for key in ("name", "category", "settings", "agreement", "quality", "repeats", "skipped"):
            assert row[key] == other[key]
    settings = [yaml.safe_load((each / "config.yaml").read_text()) for each in (folder, again)]
    assert settings[0] == settings[1]


def test_the_decoders_that_are_named(here, capsys):
    write_prompts(here / "q.jsonl", [{"prompt": "quick"}])
    chosen = ["--decoders", "prompt_lookup,assisted", "prompt_lookup", "--draft", "draft"]
    arguments = ["compare", "model", "--prompts", "p.jsonl", "q.jsonl", *chosen, *QUICK, "--name", "two"]
    assert main([*arguments, "--max_prompts", "3", "--temperature", "0.7", "--top_k", "5"]) == 0, (
        capsys.readouterr().err
    )
    _, rows = results(here, "two")
    assert [row["name"] for row in rows if row["category"] is None] == ["autoregressive", "prompt_lookup", "assisted"]
    assert rows[0]["prompts"] == 3
    assert [row["category"] for row in rows[:4]] == [None, "a", "b", "q"]
    assert rows[0]["sampling"]["top_k"] == 5
    assert rows[0]["greedy"] is False
    (assisted,) = (row for row in rows if row["name"] == "assisted" and row["category"] is None)
    assert assisted["settings"]["draft_model"] == "draft"


def test_compressors_beside_the_full_cache(here, capsys):
    chosen = ["--decoders", "prompt_lookup", "--compressors", "snap_kv=0.9,full_kv", "quest=0.95"]
    settings = "budget: 0.9, recent: 2, chunk: 2, theta: 2.0"
    few = (settings, f"{settings}, host_bits: 4, kept_bits: 8")
    written = [f"{{class_path: saccade.inference.HybridKV, init_args: {{{given}}}}}" for given in few]
    arguments = ["compare", "model", "--prompts", "p.jsonl", "--dtype", "float64", *chosen, *written, *QUICK]
    assert main(arguments) == 0, capsys.readouterr().err
    folder, rows = results(here)
    names = ["autoregressive", "prompt_lookup"]
    kinds = ["snap_kv-0.9", "full_kv", "quest-0.95", "hybrid_kv", "hybrid_kv-2"]
    pairs = [f"{name}+{kind}" for kind in kinds for name in names]
    assert [row["name"] for row in rows if row["category"] is None] == [*names, *pairs]
    by_name = {row["name"]: row for row in rows if row["category"] is None}
    for name in pairs:
        assert by_name[name]["agreement"]["differing_rows"] == 0
        assert by_name[name]["compression"]["reference"] == f"autoregressive+{name.partition('+')[2]}"
    assert by_name["prompt_lookup+snap_kv-0.9"]["settings"]["compressor"]["budget"] == 0.9
    assert by_name["prompt_lookup+hybrid_kv"]["settings"]["compressor"]["theta"] == 2.0
    assert by_name["prompt_lookup+quest-0.95"]["statistics"]["kv_host_bytes"] > 0
    assert "compressed caches" in capsys.readouterr().out
    assert main(["validate", "--config", str(folder / "config.yaml")]) == 0
    _, repeated = results(here)
    for row, other in zip(rows, repeated, strict=True):
        assert (row["name"], row["compression"]) == (other["name"], other["compression"])


def test_a_vision_language_model(here, capsys):
    vision_chat_model(here / "vision")
    assert main(["compare", "vision", "--prompts", "p.jsonl", "--decoders", "transformers", *QUICK]) == 0
    _, rows = results(here)
    assert [row["name"] for row in rows if row["category"] is None] == ["autoregressive", "transformers"]
    assert all(row["agreement"]["differing_rows"] == row["agreement"]["near_tie_rows"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "needles"),
    [
        ([], ["MODEL must be given, got none"]),
        (["none/of/these"], ["MODEL must be the folder or the hub id", "none/of/these"]),
        (["p.jsonl"], ["MODEL must be the folder or the hub id", "p.jsonl"]),
        (["model", "--decoders", "prompt_lokup"], ["--decoders must be some of", "did you mean prompt_lookup?"]),
        (["model", "--decoders", "assisted"], ["--draft must be given for the decoder assisted"]),
        (["model", "--compressors", "snapkv"], ["--compressors must be some of", "did you mean snap_kv?"]),
        (["model", "--compressors", "snap_kv=x"], ["must have a number behind snap_kv=, got 'x'"]),
        (["model", "--compressors", "full_kv=0.5"], ["--compressors must give full_kv no budget"]),
        (["model", "--compressors", "head_kv=0.5"], ["--compressors must give head_kv its scores"]),
        (["model", "--compressors", "{class: SnapKV}"], ["--compressors must be names, or mappings with class_path"]),
        (["model", "--compressors", "snap_kv=2"], ["budget must be", "got 2.0"]),
        (
            ["model", "--compressors", "{class_path: saccade.inference.HybridKV, init_args: {host_bits: 3}}"],
            ["compressors.host_bits", "16, 8, 4", "Got value: 3"],
        ),
        (
            ["model", "--compressors", "hybrid_kv=0.01", "--prompts", "p.jsonl", *QUICK],
            ["decoders.autoregressive+hybrid_kv-0.01 (Autoregressive) failed: budget must be at least"],
        ),
        (["model", "--draft", "none/of/these"], ["draft_model must be an existing path, got none/of/these"]),
        (["model", "--skip", "none/of/these.json"], ["skip must be an existing path"]),
        (["model", "--prompts", "none.jsonl"], ["cannot read none.jsonl"]),
        (["model", "--prompts", "p.jsonl", "broken.jsonl"], ["broken.jsonl, line 1: row must be JSON"]),
        (["model", "--prompts", "empty.jsonl"], ["empty.jsonl must have prompts, got none"]),
        (["model", "--prompts", "image.jsonl"], ["image.jsonl, line 1: images must be left out", "reads text only"]),
        (["model", "--template", "none.jinja"], ["template must be auto, none or a Jinja file, got 'none.jinja'"]),
        (["model", "--max_new_tokens", "0"], ["max_new_tokens must be at least 1, got 0"]),
        (["model", "--max_prompts", "0"], ["max_prompts must be at least 1, got 0"]),
        (["model", "--device", "tpu"], ["--device must be auto, cpu, cuda or cuda:NUMBER, got tpu"]),
        (["model", "--device", "cuda:99"], ["--device must be a device of this machine, got cuda:99"]),
        (["model", "--dtype", "int8"], ["dtype"]),
        (["model", "--temperature", "-1"], ["temperature must be above 0 and finite, got -1"]),
        (["model", "--max_new_token", "4"], ["max_new_token"]),
    ],
)
def test_wrong_input_ends_with_one_line_and_no_folder(here, capsys, arguments, needles):
    (here / "broken.jsonl").write_text('{"prompt": \n')
    (here / "empty.jsonl").write_text("\n")
    write_prompts(here / "image.jsonl", [{"prompt": "x", "images": ["p.jsonl"]}])
    assert main(["compare", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("saccade: error")]
    assert len(lines) == 1
    for needle in needles:
        assert needle in lines[0]
    assert not (here / "runs").exists() or not any((here / "runs").iterdir())


def test_help_tells_every_argument(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for needle in (
        "--draft",
        "--prompts FILE",
        "--decoders NAME",
        "Files of prompts",
        "Names of decoders",
        "--compressors NAME",
        "--repeats",
    ):
        assert needle in text


def test_what_follows_from_the_path_of_a_model(here, capsys, monkeypatch):
    """`model.path` needs no `model.config: null` and no tokenizer of the data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    (here / "texts").mkdir()
    for number in range(40):
        (here / "texts" / f"{number}.txt").write_text("hello fox, two and two? " * 40)
    arguments = [
        "validate", "--config", "lm/tiny.yaml", "--config", "decoder/prompt_lookup.yaml", "--model.path", "model",
        "--data.paths", "[texts/*.txt]", "--data.sequence_length", "32", "--trainer.callbacks.max_new_tokens=4",
        "--trainer.callbacks.prompt_length=8", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    folder, rows = results(here, "tiny")
    assert rows[1]["agreement"]["differing_rows"] == rows[1]["agreement"]["near_tie_rows"]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["model"]["init_args"]["config"] is None
    assert settings["data"]["init_args"]["tokenizer"] == "model"
    said = capsys.readouterr().err
    assert "saccade: model.config is not used, because model.path is given (model)" in said
    assert "no --ckpt_path" not in said
    shutil.copytree(here / "model", here / "other")
    assert main([*arguments, "--data.tokenizer", "other"]) == 0
    folder, _ = results(here, "tiny")
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["tokenizer"] == "other"
