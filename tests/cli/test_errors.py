"""Mistakes end in one line; the trace is there for those who ask."""

import pytest
import torch
import yaml

from saccade.cli.errors import one_line, raised_by_us

MISTAKES = {
    "refused by the constructor": (["--model.width=0"], "width must be at least 1, got 0"),
    "unknown setting of the model": (["--model.widht=3"], "Option 'widht' is not accepted: did you mean width?"),
    "unknown setting that is like none": (["--model.qqq=3"], "Option 'qqq' is not accepted"),
    "wrong type": (["--model.width=many"], "model.width must be a whole number, got many: correct it."),
    "text as a list": (["--model.betas=1"], "model.betas must be a list, got 1: write brackets around it"),
    "a switch as settings": (["--model.options=true"], "model.options must be settings by name, got true"),
    "not one of the choices": (["--trainer.precision=fp16"], "trainer.precision must be one of 64, 32, 16 or one of "),
    "a setting without its section": (["--max_epochs=1"], "did you mean --trainer.max_epochs?"),
    "a setting of a model without its section": (["--sublayer_dropout=1"], "did you mean --model.sublayer_dropout?"),
    "a short name": (["--model.lr=3"], "Option 'lr' is not accepted: did you mean learning_rate?"),
    "a file without --config": (["lm/tiny.yaml"], "unrecognized arguments: lm/tiny.yaml: write --config lm/tiny.yaml"),
    "a word too many": (
        ["extra"],
        "unrecognized arguments: extra: every setting has a name that begins with two dashes",
    ),
    "one dash": (["-config", "toy.yaml"], "-config must begin with two dashes, got one: write --config."),
    "a model as data": (["--data", "LanguageModel"], "LanguageModel is a class of another kind"),
    "the name of a service": (["--trainer.logger=wandb"], "there is no class wandb: did you mean WandbLogger?"),
    "a misspelt callback of Lightning": (["--trainer.callbacks+=EarlyStoping"], "did you mean EarlyStopping?"),
    "a callback without what it needs": (
        ["--trainer.callbacks+=EarlyStopping"],
        "the following arguments are required: monitor: add --trainer.callbacks.monitor=VALUE",
    ),
    "a device that is not there": (
        ["--trainer.accelerator=mps"],
        "trainer.accelerator must be one that this machine has",
    ),
    "unknown class": (["--model", "NoSuchModel"], "there is no class NoSuchModel"),
    "misspelt class": (["--model", "LanguageModl"], "there is no class LanguageModl: did you mean LanguageModel?"),
    "unknown option": (["--no_such_option=1"], "no_such_option"),
    "misspelt option": (["--modl.width=3"], "unrecognized arguments: --modl.width=3: did you mean --model?"),
    "shortened option": (["--runs=abc"], "unrecognized arguments: --runs=abc: did you mean --runs_folder?"),
    "shortened setting of the trainer": (
        ["--trainer.max_ep=1"],
        "--trainer.max_ep=1: did you mean --trainer.max_epochs?",
    ),
    "misspelt setting of the trainer": (["--trainer.max_epohcs=1"], "did you mean --trainer.max_epochs?"),
    "a seed without its whole name": (
        ["--seed=1"],
        "unrecognized arguments: --seed=1: did you mean --seed_everything?",
    ),
    "missing file": (["--config", "nowhere.yaml"], "nowhere.yaml"),
    "misspelt packaged file": (["--config", "lm/tniy.yaml"], "did you mean lm/tiny.yaml"),
    "impossible trainer": (["--trainer.max_epochs=-7"], "max_epochs"),
    "validations that no epoch reaches": (["--trainer.val_check_interval=1000"], "`val_check_interval` (1000)"),
    "no batch makes a step": (
        ["--trainer.accumulate_grad_batches=0"],
        "accumulate_grad_batches must be above 0, got 0",
    ),
    "impossible seed": (["--seed_everything=-1"], "--seed_everything must be between 0 and 4294967295, got -1"),
    "a folder as settings": (["--config", "."], "--config must be a YAML file, got the folder ."),
    "a checkpoint that is a folder": (["--ckpt_path", "."], "checkpoints/last.ckpt"),
    "a checkpoint that is text": (
        ["--ckpt_path", "toy.yaml"],
        "--ckpt_path must be a complete checkpoint, got toy.yaml",
    ),
    "unknown strategy": (["--trainer.strategy=nonsense"], "nonsense"),
    "misspelt callback": (["--trainer.callbacks+=TraitSelectio"], "TraitSelectio: did you mean TraitSelection?"),
    "misspelt setting of a callback": (
        ["--trainer.callbacks+=tests.cli.toy.Witness", "--trainer.callbacks.paht=x"],
        "paht",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_line_and_status_2(saccade, toy, mistake):
    arguments, expected = MISTAKES[mistake]
    run = saccade("fit", "--config", "toy.yaml", *arguments)
    assert run.status == 2, run.text
    (line,) = [line for line in run.err.splitlines() if line.startswith("saccade: error: ")]
    assert expected in line
    assert run.err.rstrip().endswith(line), "nothing comes after it"
    assert "Traceback" not in run.text
    assert "usage:" not in run.text
    assert run.new_folders == []


def test_broken_yaml(saccade, toy):
    (toy / "broken.yaml").write_text("model: [1, 2\n")
    run = saccade("fit", "--config", "broken.yaml")
    assert run.status == 2
    assert sum("saccade: error:" in line for line in run.err.splitlines()) == 1
    assert "Traceback" not in run.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must contain settings by name, got an empty file: see lm/tiny.yaml."),
        ("[1]\n", "got a list"),
        ("model: [1, 2\n", "line 2"),
        ("trainer: {max_steps: 1}\nmodel: {}\ntrainer: {}\n", "line 3: 'trainer' is there twice"),
        ("trainer:\n", "must give trainer settings, got none"),
        ("\xff", "can't decode"),
    ],
)
def test_a_file_of_settings_is_named(saccade, toy, text, expected):
    (toy / "mine.yaml").write_bytes(text.encode("latin-1"))
    run = saccade("fit", "--config", "toy.yaml", "--config", "mine.yaml")
    assert run.status == 2
    assert expected in run.err.rstrip().splitlines()[-1]
    assert run.err.startswith("saccade: error: --config mine.yaml ")
    assert run.new_folders == []


def test_a_file_that_torch_reads_and_that_is_no_checkpoint(saccade, toy):
    torch.save({"state_dict": {}}, toy / "weights.ckpt")
    run = saccade("validate", "--config", "toy.yaml", "--ckpt_path", "weights.ckpt")
    assert run.status == 2
    assert "--ckpt_path must be a checkpoint of a run, got another file of torch, weights.ckpt" in run.err
    assert run.new_folders == []


def test_keys_inside_each_other_are_one_key():
    error = ValueError('Parser key "a": Parser key "b": Parser key "c": wrong')
    assert one_line(error) == 'Parser key "a.b.c": wrong'


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": {"seed": 1}}, "model must be a class_path with init_args, got seed without them"),
        ({"model": {"class_path": "LanguageModel", "init_arg": {"seed": 1}}}, "got init_arg without them: write"),
        ({"model": {"class_path": "LanguageModel", "init_args": {"config": "llama"}}},
         "model.config must be settings by name, got llama: correct it."),
        ({"modle": {"class_path": "LanguageModel"}}, "'modle.class_path': did you mean model?"),
        ({"max_steps": 3}, "option 'max_steps': did you mean trainer.max_steps?"),
    ],
)  # fmt: skip
def test_settings_in_the_wrong_place_of_a_file(saccade, toy, settings, expected):
    (toy / "mine.yaml").write_text(yaml.safe_dump({"data": {"class_path": "tests.cli.toy.ToyData"}, **settings}))
    run = saccade("fit", "--config", "mine.yaml")
    assert run.status == 2
    (line,) = run.err.splitlines()
    assert expected in line


def test_no_model(saccade, toy):
    (toy / "empty.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 1}}))
    run = saccade("fit", "--config", "empty.yaml")
    assert run.status == 2
    assert "model must be given, got none: name a file of settings with --config" in run.err


def test_trace_with_debug(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--model.width=0", "--debug")
    assert run.status == 2
    assert "Traceback" in run.err
    assert "in __init__" in run.err
    assert run.err.rstrip().splitlines()[-1].startswith("saccade: error: width")


def test_our_own_refusal_during_the_run_is_one_line(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--model.fail=ours")
    assert run.status == 2
    assert "Traceback" not in run.text
    assert run.err.rstrip().splitlines()[-1].startswith("saccade: error: cannot write x.json")


def test_somebody_elses_bug_keeps_its_trace(saccade):
    run = saccade("fit", "--config", "toy.yaml", "--model.fail=theirs")
    assert run.status == 1
    assert "Traceback" in run.err
    assert run.err.splitlines()[-1].startswith("saccade: error: ValueError: invalid literal")


def test_unknown_command(saccade):
    run = saccade("vaildate")
    assert run.status == 2
    assert run.err == "saccade: error: unknown command 'vaildate': did you mean validate?\n"


def test_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert len(one_line(ValueError("word " * 1000))) <= 600


def test_raised_by_us():
    from saccade.common.files import write_json

    with pytest.raises(ValueError, match="cannot write") as ours:
        write_json("/dev/null/x.json", {})
    assert raised_by_us(ours.value)
    with pytest.raises(ValueError, match="invalid") as theirs:
        int("x")
    assert not raised_by_us(theirs.value)


def test_the_weights_of_another_model_are_counted_and_not_listed():
    whole, other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)), torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError) as caught:
        whole.load_state_dict({**other.state_dict(), "1.weight": torch.zeros(9, 2)})
    assert one_line(caught.value) == (
        "--ckpt_path must have the weights of Sequential, got others (3 are missing, such as 0.weight; 2 are unknown to"
        " the model, such as weight; 1 have other shapes, such as 1.weight): give a checkpoint of this configuration,"
        " or the configuration of the checkpoint."
    )


FOREIGN = {
    "LanguageModel": (
        {"config": {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 1, "vocab_size": 300}},
        "'input_ids' for LanguageModel, got batches with task, query_id, query: set data to"
        " saccade.datamodules.TextCorpus.",
        {"class_path": "saccade.datamodules.ChunkPool",
         "init_args": {"sources": ["asyncio", "email"], "target": "logging", "chunk_size": 16}},
    ),
    "Retriever": (
        {"rows": 512, "width": 8},
        "'query' for Retriever, got batches with input_ids",
        {"class_path": "saccade.datamodules.VideoCaptions",
         "init_args": {"frames": 4, "max_digits": 1, "scenes": 16, "validation_scenes": 1, "test_scenes": 0}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", FOREIGN)
def test_the_data_of_another_module_is_refused(saccade, toy, model):
    arguments, expected, data = FOREIGN[model]
    settings = {"model": {"class_path": f"saccade.modules.{model}", "init_args": arguments}, "data": data}
    (toy / "mixed.yaml").write_text(yaml.safe_dump(settings | {"trainer": {"max_steps": 1, "accelerator": "cpu"}}))
    run = saccade("fit", "--config", "mixed.yaml")
    assert run.status == 2, run.text
    assert f"data must give batches with {expected}" in run.err.rstrip().splitlines()[-1]
    assert run.new_folders == []


def test_loaders_that_lightning_cannot_make_anew(saccade, toy):
    (toy / "words.txt").write_text("a few words to learn from\n" * 90)
    run = saccade("fit", "--config", "lm/tiny.yaml", "--data.paths=['words.txt']", "--trainer.overfit_batches=2")
    assert run.status == 2
    assert "--trainer.overfit_batches must be 0 with TextCorpus, got 2" in run.err
    assert run.new_folders == []
