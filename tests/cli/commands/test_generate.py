"""`saccade generate` writes what the model answers, for any batch, and `fit` trains a draft on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from saccade.cli.main import main
from saccade.datamodules.prompts.conversation import BUILT_IN, read_conversations
from tests.support.chat_models import chat_model, vision_chat_model, write_prompts
from tests.support.trained import QUICK

ROWS = [
    {"id": "first", "prompt": "hello fox", "category": "a"},
    {"turns": ["one", "quick"], "category": "b"},
    {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "two and two?"}]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    chat_model(folder / "model", layers=3)
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch) -> Path:
    for name in ("SACCADE_RUN_FOLDER", "SACCADE_CKPT_PATH", "PL_GLOBAL_SEED", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "model").symlink_to(models / "model")
    write_prompts(tmp_path / "p.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(*arguments: str) -> list[dict]:
    command = ["generate", "model", "--prompts", "p.jsonl", "--max_new_tokens", "5", "--device", "cpu", *arguments]
    assert main(command) == 0
    return [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]


def own(messages: list[dict], new_tokens: int = 5) -> str:
    """What transformers' generate answers."""
    model, tokenizer = (kind.from_pretrained("model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=new_tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True).strip()


def test_answers_are_those_of_the_model(here, capsys):
    first, second, third = written("--dtype", "float64")
    user = [{"role": "user", "content": "hello fox"}]
    answer = {"role": "assistant", "content": own(user)}
    assert first == {"id": "first", "category": "a", "messages": [*user, answer], "finish_reason": "length"}
    one = own([{"role": "user", "content": "one"}])
    chat = [{"role": "user", "content": "one"}, {"role": "assistant", "content": one}]
    assert second["turns"] == ["one", "quick"]
    assert second["answers"] == [one, own([*chat, {"role": "user", "content": "quick"}])]
    assert (second["category"], third["id"], third["messages"][:2]) == ("b", "p-3", ROWS[2]["messages"])
    assert "answers to 3 conversations are in answers.jsonl: 20 tokens" in capsys.readouterr().err
    conversations = read_conversations(["answers.jsonl"])
    assert [(each.id, each.cut) for each in conversations] == [("first", True), ("p-2", True), ("p-3", True)]
    assert conversations[1].answers == ((second["answers"][0],), (second["answers"][1],))


@pytest.mark.parametrize("drawn", [(), ("--temperature", "0.8", "--seed", "3")])
def test_batches_and_decoders_do_not_change_the_answers(here, drawn):
    rows = written("--dtype", "float64", *drawn)
    assert rows == written("--dtype", "float64", "--batch_size", "1", "--decoder", "prompt_lookup", *drawn)
    assert (rows == written("--dtype", "float64")) == (not drawn)


def ending_with(place: int) -> list[dict]:
    """The lines of a model that ends its answers with a token that stands in its answer to the first prompt."""
    model, tokenizer = (kind.from_pretrained("model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("[user]hello fox<|end|>[assistant]", return_tensors="pt")
    length = prompt["input_ids"].shape[1]
    end = int(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, length + place])
    model.generation_config.eos_token_id = [end]
    model.save_pretrained("ends")
    tokenizer.save_pretrained("ends")
    assert main(["generate", "ends", "--prompts", "p.jsonl", "--max_new_tokens", "5", "--device", "cpu"]) == 0
    return [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_answer_that_the_model_ends(here):
    first = ending_with(1)[0]
    assert (first["id"], first["finish_reason"]) == ("first", "stop")
    # without the token that ends it
    assert first["messages"][1]["content"] == own([{"role": "user", "content": "hello fox"}], new_tokens=1)


def test_empty_answers_are_left_out(here, capsys):
    """A file with an empty text could not be read."""
    assert "first" not in [row["id"] for row in ending_with(0)]
    assert "left out, because an answer is empty" in capsys.readouterr().err
    assert read_conversations(["answers.jsonl"])


def test_a_draft_is_trained_on_the_answers(here, capsys):
    written()
    small = ["--data.sequence_length=64", "--data.batch_size=2"]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=1", "--trainer.log_every_n_steps=1"]
    arguments = ["fit", "--config", "lm/draft.yaml", "--model.path", "model", "--data.files=[answers.jsonl]"]
    assert main([*arguments, *small, *short, *QUICK]) == 0, capsys.readouterr().err
    draft = AutoModelForCausalLM.from_pretrained("runs/draft/latest/model")
    assert draft.config.num_hidden_layers == 2
    quick = ["--prompts", "p.jsonl", "--max_new_tokens", "4", "--repeats", "1", "--device", "cpu"]
    assert main(["compare", "model", "--draft", "runs/draft/latest/model", *quick]) == 0


def test_conversations_without_room_are_left_out(here, capsys):
    write_prompts(here / "p.jsonl", [*ROWS, {"id": "long", "prompt": "hello " * 300}])
    assert len(written()) == 3
    assert "1 of 4 conversations are left out, because the model's context has no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL must be given"),
        (["nowhere/at/all"], "MODEL must be an existing path, got nowhere/at/all"),
        (["model", "--decoder", "prompt_lokup"], "--decoder must be one of assisted, autoregressive"),
        (["model", "--decoder", "assisted"], "--draft must be given for the decoder assisted"),
        (["model", "--batch_size", "0"], "batch_size must be at least 1"),
        (["model", "--device", "tpu"], "--device must be auto, cpu, cuda or cuda:NUMBER"),
        (["model", "--promts", "p.jsonl"], "promts"),
        (["model", "--prompts", "none.jsonl"], "none.jsonl"),
    ],
)
def test_mistakes_are_one_line(here, capsys, arguments, message):
    assert main(["generate", *arguments]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "loading" not in line)
    assert message in line
    assert not Path("answers.jsonl").exists()


def test_a_vision_language_model_is_refused(here, capsys):
    vision_chat_model(here / "vision")
    assert main(["generate", "vision"]) == 2
    assert "MODEL must be a text model, got one of type qwen2_5_vl" in capsys.readouterr().err


def test_the_built_in_prompts_are_the_default(here):
    arguments = ["--max_prompts", "8", "--max_new_tokens", "1", "--device", "cpu", "--output", "built/in.jsonl"]
    assert main(["generate", "model", *arguments]) == 0
    rows = [json.loads(line) for line in Path("built/in.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["id"] for row in rows} <= {each.id for each in read_conversations([BUILT_IN])}
