"""The benchmark of speculation on real prompts: prompts by kind, peers, rows, the cost model and the table."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import rows as benchmark_rows
from benchmarks.decoding import real_prompts, speculation, tables
from saccade.inference.drafting.skip_sets import write_skip_file
from saccade.inference.statistics import DecodingStats
from tests.support.models import copy_layers, tiny_model

WORDS = ["user", "a", "b", "c", "?", "<unk>"]


@pytest.fixture
def tokenizer(tmp_path):
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="?")  # noqa: S106
    made.chat_template = "{% for message in messages %}user {{ message.content }}{% endfor %} ?"
    made.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_prompts_by_kind(tmp_path, tokenizer) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "a b", "category": "coding"}, {"turns": ["b c", "a"], "category": "stem"}]
    lines += [
        {"messages": [{"role": "user", "content": "a " * 9}], "category": "qa"},
        {"prompt": "b", "category": "qa"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = real_prompts.prompts_by_kind([str(file)], tokenizer, 2, 6)
    assert found == {"multi-turn": [[0, 1, 2, 4], [0, 2, 3, 4]], "qa": [[0, 1, 1, 1, 1, 4], [0, 2, 4]]}
    assert real_prompts.prompts_by_kind([str(file)], tokenizer, 1, 6, ["qa"]) == {"qa": [[0, 1, 1, 1, 1, 4]]}
    with pytest.raises(SystemExit, match="--kinds must be among multi-turn, qa, got quality"):
        real_prompts.prompts_by_kind([str(file)], tokenizer, 1, 6, ["quality"])


def test_rows_and_table(tmp_path, monkeypatch) -> None:
    model = tiny_model(residual=0.3).float()
    draft = copy_layers(model, 2)
    prompts = {"chat": [[3, 1, 4], [1, 5]], "code": [[9, 2, 6, 5]]}
    write_skip_file(tmp_path / "skip_layers.json", model, [1], [])
    decoders = speculation.contenders(draft, str(tmp_path / "skip_layers.json"), [2, 4], [2])
    assert {"SelfSpeculative, 4", "SelfSpeculative, control", "SelfSpeculative, searched set, control"} <= set(decoders)
    written = {name: speculation.ours(decoder, model, 12) for name, decoder in decoders.items()}
    written |= speculation.peers(model, draft, 12, 8)

    def broken(ids):
        raise RuntimeError("it is not supported")

    found = speculation.measure({**written, "transformers broken": broken}, prompts, 2)
    assert {name for name, _ in found} == set(written), "the broken one is left out"
    made = speculation.rows_of(
        lambda kind: f"tiny, float32, {kind}, 2 prompts, up to 12 new", found, prompts, model, draft, False
    )
    assert all(row["identical_rows"] == row["rows"] for row in made)
    assert {row["new_tokens"] for row in made} == {12, 24}
    both = next(row for row in made if row["method"] == "Double, 2")
    assert both["run_length"] > 1
    assert 0 <= both["kept_by_target"] < 10
    assert "rounds" not in both
    assert {row["method"] for row in made} >= {"Pearl, 2", "Double, draft only, 2", "Double, control"}
    assisted = next(row for row in made if row["method"] == "AssistedDecoding, 4")
    assert assisted["K"] == pytest.approx(4, abs=0.5)
    assert assisted["predicted"] == pytest.approx(assisted["E"] / (assisted["K"] * assisted["c"] + assisted["v"]))
    monkeypatch.setattr(benchmark_rows, "RESULTS", tmp_path)
    assert tables.speculation().startswith("No rows yet")
    benchmark_rows.replace(made)
    table = tables.speculation().splitlines()
    assert table[0] == "| decoder | chat | code | mean |"
    assert table[2].startswith("| Autoregressive | 1.00 | 1.00 | 1.00 |")
    assert any(line.startswith("| AssistedDecoding, 4: E / (K c + v) | ") for line in table)
    assert "of each kind, up to 12 new tokens, greedy" in table[-1]


def test_a_peers_first_token_is_left_out() -> None:
    model = tiny_model().float()
    made = speculation.peer(model, 8)([3, 1, 4])
    assert (len(made.tokens), made.later) == (8, 7)
    made = speculation.peer(model, 8, prompt_lookup_num_tokens=4)([3, 1, 4])
    assert len(made.tokens) == 8
    assert 0 < made.later <= 7


def test_the_cost_model() -> None:
    counts = DecodingStats(new_tokens=41, drafted=40, accepted=30, verify_steps=10)
    found = speculation.cost_model(counts, [2.0, 3.0], 0.5)
    assert found == {"E": 4.0, "K": 4.0, "c": 0.25, "v": 1.5, "predicted": 1.6}
