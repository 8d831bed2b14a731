"""Every shipped file of settings is parsed, built and run on tiny inputs; a file that no test knows fails."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel

from saccade.cli.commands.compressor_arguments import compressor_classes
from saccade.cli.config_lookup import packaged_configs
from saccade.cli.main import main
from saccade.datamodules import SyntheticSentiment
from saccade.inference.drafting.skip_sets import write_skip_file
from tests.support.chat_models import chat_qwen
from tests.support.processes import TIME_LIMIT
from tests.support.trained import QUICK

CONFIGS = packaged_configs()
SMALL_MODEL = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip
SMALL_DATA = {"max_bytes": 200_000, "max_files": 40, "validation_fraction": 0.2, "test_fraction": 0.2, "batch_size": 2}


def of_kind(kind: str) -> list[str]:
    return [name for name in CONFIGS if name.startswith(f"{kind}/")]


def newest(place: Path, name: str) -> Path:
    return max(path for path in (place / "runs" / name).iterdir() if not path.is_symlink())


def test_every_kind_is_tested_below():
    assert {name.split("/")[0] for name in CONFIGS} == {
        "lm", "decoding", "decoder", "search", "strategy", "t2dr", "missing", "trait",
        "video", "ranking", "compressor",
    }  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_comment_says_what_it_is_for(name):
    assert CONFIGS[name].read_text(encoding="utf-8").startswith("# ")


OWN_ANSWERS = {"lm/draft.yaml": 2, "lm/sublayer_dropout.yaml": 4}  # with the layers of what they make of the tiny model


@pytest.mark.parametrize("name", [name for name in of_kind("lm") if name not in OWN_ANSWERS])
def test_language_models_fit(name, inside):
    """The file as it is, but for sizes."""
    given = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))
    small = {
        "model": {"init_args": {"config": given["model"]["init_args"]["config"] | SMALL_MODEL}},
        "data": {"init_args": SMALL_DATA},
        "trainer": {"max_epochs": None, "max_steps": 2, "val_check_interval": None, "limit_train_batches": 2},
    }
    (inside / "small.yaml").write_text(yaml.safe_dump(small))
    assert main(["fit", "--config", name, "--config", "small.yaml", "--name", "small", *QUICK]) == 0
    assert (newest(inside, "small") / "model" / "config.json").is_file()


@pytest.mark.parametrize("name", OWN_ANSWERS)
def test_a_trained_model_fits_its_own_answers(name, inside):
    """The file as it is, but for sizes; the tiny model has no chat template."""
    rows = [{"prompt": f"def f{number}(x):", "answer": "return x"} for number in range(6)]
    (inside / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--data.sequence_length=32", "--data.batch_size=2"]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1"]
    model = ["--model.path", "runs/demo-draft/latest/model"]
    assert main(["fit", "--config", name, *model, *small, *short, "--name", "own", *QUICK]) == 0
    config = json.loads((newest(inside, "own") / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == OWN_ANSWERS[name]


FEW_CLIPS = [
    "--data.generator=SyntheticSentiment", "--data.generator.clips=[40,16,16]", "--data.batch_size=16",
]  # fmt: skip
FAST = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
NARROW = ["--model.width=8", "--model.heads=2", "--model.depth=1"]


@pytest.mark.parametrize("name", [name for name in of_kind("t2dr") if name != "t2dr/mosi.yaml"])
def test_multimodal_models_fit_and_are_tested(name, inside, monkeypatch):
    if name != "t2dr/demo.yaml":  # tracing takes seconds, and tests/modules/multimodal traces every kind of layer
        monkeypatch.setattr("saccade.modules.multimodal.export._program", lambda model, example: model.state_dict())
        monkeypatch.setattr("torch.export.save", lambda weights, path: save_file(weights, path))
    shared = ["--config", "t2dr/demo.yaml", "--config", name, "--name", "multimodal", *FEW_CLIPS, *FAST, *NARROW]
    assert main(["fit", *shared]) == 0
    assert (newest(inside, "multimodal") / "model" / "model.pt2").is_file()
    assert main(["test", *shared, "--trainer.callbacks.mask_seeds=1", "--ckpt_path", "best"]) == 0
    assert (newest(inside, "multimodal") / "missing.md").is_file()


def test_bert_reads_a_feature_file(inside):
    """`t2dr/mosi.yaml` on a file that the generator wrote, with a BERT of one layer."""
    SyntheticSentiment(clips=(40, 16, 16)).write(inside / "features.pkl")
    config = BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(inside / "bert")
    arguments = [
        "fit",
        "--config",
        "t2dr/mosi.yaml",
        "--data.path=features.pkl",
        "--data.batch_size=16",
        "--name",
        "mosi",
        *FAST,
        *NARROW,
    ]
    assert main([*arguments, "--model.text_encoder.path=bert"]) == 0
    assert (newest(inside, "mosi") / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("name", of_kind("missing"))
def test_protocols_train_and_test(name, inside):
    shared = ["--config", "t2dr/demo.yaml", "--config", name, "--name", "protocol", *FEW_CLIPS, *FAST, *NARROW]
    assert main(["validate", *shared, "--trainer.callbacks.mask_seeds=1"]) == 0
    rows = json.loads((newest(inside, "protocol") / "missing.json").read_text())
    protocol = yaml.safe_load(CONFIGS[name].read_text())["data"]["init_args"]["train_protocol"]["class_path"]
    assert protocol.rsplit(".", 1)[-1] in json.dumps(rows[0])


@pytest.mark.parametrize("name", of_kind("ranking"))
def test_retrievers_fit_and_are_tested(name, inside):
    small = [
        "--data.sources=[asyncio]", "--data.target=logging", "--model.rows=512", "--model.width=8",
        "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", "--config", name, "--name", "found", *small]) == 0
    assert (newest(inside, "found") / "model" / "words.py").is_file()
    assert main(["test", "--config", name, "--name", "found", *small, "--ckpt_path", "last"]) == 0


@pytest.mark.parametrize("name", of_kind("trait"))
def test_rankers_pick_their_data(name, inside):
    small = [
        "--data.sources=[asyncio,email]", "--data.target=logging", "--data.chunk_size=16", "--data.passes=1",
        "--data.hard_negatives=2", "--model.width=8", "--trainer.callbacks.budget=2", "--trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["fit", "--config", name, "--name", "picked", *small]) == 0
    run = newest(inside, "picked")
    assert json.loads((run / "trait.json").read_text())["trials"] == 2
    assert (run / "trait.png").is_file()


@pytest.mark.parametrize("name", of_kind("search"))
def test_searches_search(name, inside, capsys):
    quick = (
        "--trials=3", "--finalists=1", "--rounds=1", "--max_prompts=1", "--prompt_length=8", "--max_new_tokens=4",
        "--device=cpu",
    )  # fmt: skip
    arguments = ["search-layers", "--config", name, "--model", "runs/demo-draft/latest/model"]
    assert main([*arguments, "--output", "searched/skip_layers.json", *quick]) == 0, capsys.readouterr().err
    assert (inside / "searched" / "skip_layers.json").is_file()


VIDEO_DECODERS = ["decoding/video.yaml", "decoder/specvlm.yaml", "decoder/lvspec.yaml"]
TEXT = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
VISION = {
    "qwen2_5_vl": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 1},
    "llava_onevision": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
    },
}  # fmt: skip
FEW_VIDEOS = {
    "frames": 4, "height": 56, "width": 56, "patch_size": 14, "max_digits": 1, "scenes": 4, "validation_scenes": 2,
    "test_scenes": 1, "batch_size": 2, "num_workers": 0,
}  # fmt: skip


def smaller_video(name: str, folder: Path) -> str:
    """A file beside the shipped one that makes its model and data small."""
    config = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))["model"]["init_args"]["config"]
    small = {"text_config": TEXT, "vision_config": VISION[config["model_type"]]}
    config = config | {part: config[part] | values for part, values in small.items() if part in config}
    small = {
        "model": {"init_args": {"config": config, "slot_scenes": 1, "max_answer_tokens": 8}},
        "data": {"init_args": FEW_VIDEOS},
        "trainer": {"max_epochs": None, "max_steps": 1, "val_check_interval": None, "precision": "32-true"},
    }
    path = folder / f"small-{Path(name).stem}.yaml"
    path.write_text(yaml.safe_dump(small))
    return str(path)


@pytest.mark.parametrize("name", of_kind("video"))
def test_video_models_fit(name, inside):
    """The file as it is, but for sizes; what goes on from another run does so."""
    first = "video/qwen.yaml" if name == "video/long.yaml" else name
    arguments = ["fit", "--config", first, "--config", smaller_video(first, inside), "--name", "video", *QUICK]
    if name in ("video/pretrained.yaml", "video/pretrained-draft.yaml"):
        tower = "video/pretrained-tower.yaml"
        assert main(["fit", "--config", tower, "--config", smaller_video(tower, inside), *QUICK]) == 0
        arguments += ["--model.language_model", chat_qwen(inside / "qwen")]
    assert main(arguments) == 0
    assert (newest(inside, "video") / "model" / "config.json").is_file()
    if name != first:
        short = ["--data.frames=6", "--data.batch_size=1", "--trainer.max_steps=1", "--trainer.val_check_interval=1"]
        arguments += ["--config", name, "--model.path=runs/video/latest/model", *short]
        assert main(arguments) == 0


@pytest.mark.parametrize("name", VIDEO_DECODERS)
def test_decoders_of_videos_decode(name, inside, capsys):
    tiny = ["--config", "video/qwen-tiny.yaml", "--config", smaller_video("video/qwen-tiny.yaml", inside), *QUICK]
    assert main(["fit", *tiny, "--name", "tiny-draft"]) == 0
    short = ["--trainer.callbacks.max_new_tokens=6", "--trainer.callbacks.max_prompts=1"]
    assert main(["validate", *tiny, "--name", "decoded", "--config", name, *short]) == 0, capsys.readouterr().err
    text = (newest(inside, "decoded") / "decoding.json").read_text()
    attached = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))["trainer"]["callbacks+"][0]["init_args"]
    for decoder in attached["decoders"]:
        assert json.dumps(decoder) in text


@pytest.mark.parametrize("name", sorted({*of_kind("decoding"), *of_kind("decoder")} - {*VIDEO_DECODERS}))
def test_decoders_decode(name, inside, capsys):
    trained = {"model": {"init_args": {"path": "runs/demo-draft/latest/model", "config": None}}}
    (inside / "trained.yaml").write_text(yaml.safe_dump(trained))
    skip = Path("runs/demo/latest/skip_layers.json")
    if not skip.exists():
        model = AutoModelForCausalLM.from_pretrained("runs/demo-draft/latest/model")
        write_skip_file(skip, model, attention=[1], mlp=[2])
    arguments = ["validate", "--config", "lm/tiny.yaml", "--config", "trained.yaml", "--config", name]
    short = ("prompt_length=8", "max_new_tokens=8", "max_prompts=2")
    arguments += ["--name", "decoded", *QUICK, *(f"--trainer.callbacks.{setting}" for setting in short)]
    assert main(arguments) == 0, capsys.readouterr().err
    text = (newest(inside, "decoded") / "decoding.json").read_text()
    attached = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))["trainer"]["callbacks+"][0]["init_args"]
    for decoder in attached["decoders"]:
        assert json.dumps(decoder) in text


def test_there_is_a_file_for_every_compressor():
    assert [Path(name).stem for name in sorted(of_kind("compressor"))] == sorted(compressor_classes())


@pytest.mark.parametrize("name", of_kind("compressor"))
def test_compressors_compress(name, inside, capsys):
    """The file as it is, but for the model and the number of prompts."""
    model = {"init_args": {"path": "runs/demo-draft/latest/model", "config": None}}
    small = {"model": model, "data": {"init_args": {"sequence_length": 120}}}
    (inside / "trained.yaml").write_text(yaml.safe_dump(small))
    shape = AutoConfig.from_pretrained("runs/demo-draft/latest/model")
    scores = Path("runs/demo/latest/head_scores.json")
    scores.parent.mkdir(parents=True, exist_ok=True)
    scores.write_text(json.dumps([[1.0] * shape.num_key_value_heads] * shape.num_hidden_layers))
    arguments = ["validate", "--config", "lm/tiny.yaml", "--config", "trained.yaml", "--config", name, *QUICK]
    short = ("max_new_tokens=4", "max_prompts=1")
    arguments += ["--name", "compressed", *(f"--trainer.callbacks.{setting}" for setting in short)]
    assert main(arguments) == 0, capsys.readouterr().err
    _, row = json.loads((newest(inside, "compressed") / "decoding.json").read_text())
    assert row["name"] == f"autoregressive+{Path(name).stem}"
    assert row["prompt_length"] == 96
    given = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))["trainer"]["callbacks+"][0]["init_args"]
    for setting, value in given["compressors"][Path(name).stem].get("init_args", {}).items():
        assert row["compression"]["settings"][setting] == value


@pytest.mark.parametrize("name", of_kind("strategy"))
def test_strategies_change_the_trainer_only(name):
    assert set(yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8"))) == {"trainer"}


def test_two_processes_share_one_run_folder(inside):
    """`strategy/ddp.yaml` on two CPU processes; the second one is started by Lightning."""
    command = [
        sys.executable, "-m", "saccade.cli.main", "fit", "--config", "lm/tiny.yaml", "--config", "strategy/ddp.yaml",
        "--name", "two", "--trainer.devices=2", "--trainer.max_steps=2", "--trainer.val_check_interval=2", *QUICK,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIME_LIMIT, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (folder,) = (path for path in (inside / "runs" / "two").iterdir() if not path.is_symlink())
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (folder / "model" / "model.safetensors").is_file()
    assert run.stderr.count("saccade: results are in") == 1


@pytest.mark.parametrize("name", [name for name in of_kind("strategy") if "deepspeed" in name])
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_without_deepspeed_is_one_line(name, inside, capfd):
    status = main(["fit", "--config", "lm/tiny.yaml", "--config", name, *QUICK, "--trainer.precision=32"])
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("saccade: error")]
    assert (status, len(lines)) == (2, 1)
    assert "deepspeed" in lines[0].lower()


@pytest.mark.deepspeed
@pytest.mark.multi_gpu
@pytest.mark.parametrize("name", [name for name in of_kind("strategy") if "deepspeed" in name])
def test_deepspeed_fits_resumes_and_validates(name, inside):
    torch = pytest.importorskip("torch")
    pytest.importorskip("deepspeed")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    shared = ["--config", "lm/tiny.yaml", "--config", name, "--name", "zero"]
    for arguments in (
        ["fit", *shared, "--trainer.max_steps=4", "--trainer.val_check_interval=2"],
        ["fit", *shared, "--trainer.max_steps=8", "--ckpt_path", "last"],
        ["validate", *shared, "--config", "decoder/prompt_lookup.yaml", "--ckpt_path", "last"],
    ):
        command = [sys.executable, "-m", "saccade.cli.main", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    assert (newest(inside, "zero") / "decoding.json").is_file()
