"""Quality of compressors: prompts with answers in them, caches of one reading, rows, tables and figure."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import rows
from benchmarks.compression import quality, quality_rows, tables
from benchmarks.compression.long_prompts import TASKS, LongPrompt, Maker, Sources
from benchmarks.compression.reading import Reading
from saccade.common.provenance import provenance
from saccade.inference import Autoregressive, FullKV, HybridKV, Quest, SnapKV, StreamingLLM
from saccade.inference.compression.compressor import Plan
from saccade.inference.compression.observation import Observation
from saccade.inference.engine.config import EngineConfig
from tests.support.models import tiny_model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({character: place for place, character in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    worked = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    item = {"answer": "One and <<1+1=2>>2 make\n#### 3"}
    lines = [{"question": f"What are {number} and more?", **item} for number in range(60)]
    worked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Maker(Sources.at_hand(problems=str(worked)), byte_tokenizer(), 2500)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_hold_their_answers(maker, task) -> None:
    item = maker.make(task, 0)
    decode = maker.tokenizer.decode
    assert 2300 < len(item.prompt) <= 2500
    told, question = decode([item.prompt[place] for place in item.planted]), decode(item.prompt[-item.question :])
    answer = decode(item.answer)
    assert answer.strip(" (").split("\n")[0] in told
    assert answer.strip() not in question
    assert max(item.planted) < len(item.prompt) - item.question
    assert question.startswith("\n")
    assert maker.make(task, 0) == item
    assert maker.make(task, 1).prompt != item.prompt


def test_problems_have_no_sums_in_brackets_and_need_a_file(maker) -> None:
    assert maker.sources.problems[0] == ("What are 0 and more?", "One and 2 make #### 3")
    assert "problem" not in Maker(Sources(["a"], ["b"], ["c"]), maker.tokenizer, 100).tasks


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocabulary=60, context=400, seed=3)


PROMPT = torch.randint(0, 60, (150,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize(
    "compressor", [FullKV(), SnapKV(0.5), StreamingLLM(0.3), Quest(0.3), HybridKV(0.6), HybridKV(0.6, theta=2)]
)
def test_the_own_answer_of_a_compressed_cache_is_right(model, compressor) -> None:
    out = Autoregressive(compressor=compressor).generate(model, torch.tensor([PROMPT]), max_new_tokens=8)
    answer = out.sequences[0, len(PROMPT) :].tolist()
    with Reading(model, PROMPT, len(answer)) as reading:
        plan = compressor.plan(reading.observation(compressor))
        found = reading.outcome(reading.cache(plan), answer)
        assert found.right == [True] * len(answer)
        other = [(token + 1) % 60 for token in answer]
        assert not any(reading.outcome(reading.cache(plan), [*answer[:3], *other[3:]]).right[3:4])


@dataclass
class Watched(HybridKV):
    """Keeps what it saw."""

    def plan(self, seen: Observation) -> Plan:
        self.seen = seen
        return super().plan(seen)


def test_a_reading_sees_what_a_session_sees(model) -> None:
    watched = Watched(0.7)
    engine = EngineConfig(prefill_chunk=47)  # the observed rows lie in two pieces
    Autoregressive(compressor=watched, engine=engine).generate(model, torch.tensor([PROMPT]), max_new_tokens=2)
    with Reading(model, PROMPT, 1) as reading:
        seen = reading.observation(watched)
        for name in ("mean", "alive", "late"):
            torch.testing.assert_close(getattr(seen, name), getattr(watched.seen, name))
        assert not torch.allclose(seen.late[0], seen.mean[0])


def test_the_whole_cache_is_that_of_the_model_and_stays(model) -> None:
    answer = [7, 8, 9, 10]
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + answer])).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    wanted = logits.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
    with Reading(model, PROMPT, 4) as reading:
        plan = FullKV().plan(reading.observation(FullKV()))
        for compressor in (StreamingLLM(0.1), HybridKV(0.6, theta=2)):
            pruned = reading.outcome(reading.cache(compressor.plan(reading.observation(compressor))), answer)
            assert pruned.log_probability != pytest.approx(wanted, rel=1e-3)
        whole = reading.outcome(reading.cache(plan), answer)
        assert whole.log_probability == pytest.approx(wanted)
        assert whole.device_bytes > pruned.device_bytes
        assert pruned.host_bytes > 0


def test_a_question_behind_the_compression_is_read_by_the_compressed_cache(model) -> None:
    asked, answer = PROMPT[-70:], [7, 8]  # more than one step has room for
    with Reading(model, PROMPT, 2) as reading:
        seen = reading.observation(SnapKV(0.2), 80)
        assert seen.length == 80
        assert seen.rows == (48, 80)
        whole = reading.outcome(reading.cache(FullKV().plan(seen), 80), answer, asked)
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPT + answer])).logits[0, -3:-1].log_softmax(-1)
        wanted = logits.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
        assert whole.log_probability == pytest.approx(wanted)
        pruned = reading.outcome(reading.cache(SnapKV(0.2).plan(seen), 80), answer, asked)
        assert pruned.log_probability[0] != pytest.approx(wanted[0], rel=1e-3)
        with pytest.raises(ValueError, match=r"^window must reach back at most 128 rows, got \d+: lower it\.$"):
            reading.observation(SnapKV(0.2), 40)


def lines(later: bool = False) -> list[dict]:
    """Four prompts: SnapKV loses one of them at 10 %, HybridKV none."""
    origin = {"device": ["a device"], "commit": "0123456789", "versions": {"torch": "2", "transformers": "5"}}
    made = []
    for method, budget, wrong in (("full", 1.0, 0), ("HybridKV", 0.1, 0), ("SnapKV", 0.1, 1), ("SnapKV", 0.2, 0)):
        for number in range(4):
            right = [False, True, number >= wrong]  # the first token is the prefill's
            made.append(
                {
                    "model": "a model", "length": 100, "later": later, "task": "needle", "number": number,
                    "method": method, "budget": budget, "right": right, "log_probability": [-0.5, -0.5, -1.0],
                    "device_bytes": int(1000 * budget), "host_bytes": 0, "static": None, "origin": origin,
                }
            )  # fmt: skip
    return made


def test_rows_are_paired_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = provenance(0)  # asks git, so not for every row
    monkeypatch.setattr(rows, "provenance", lambda seed: dict(origin))
    made = quality_rows.made(lines())
    found = {(row["method"], row["budget"], row["metric"]): row for row in made}
    assert len(made) == len(found) == 12
    snap = found["SnapKV", 0.1, "exact"]
    assert (snap["mean"], snap["runs"], snap["device"], snap["commit"]) == (75, 4, "a device", "0123456789")
    assert snap["minus_full"][0] == -25
    assert snap["minus_full"][1] < -25 < snap["minus_full"][2] == 0
    assert snap["hybrid_minus_this"][0] == 25
    assert found["SnapKV", 0.2, "exact"]["hybrid_minus_this"] is None
    assert found["SnapKV", 0.1, "tokens"]["mean"] == 87.5
    assert found["SnapKV", 0.1, "loss"]["mean"] == 2
    assert found["SnapKV", 0.1, "loss"]["device_share"] == pytest.approx(0.1)
    later = quality_rows.made(lines(later=True))  # there the first token counts as well
    assert next(row for row in later if row["metric"] == "tokens")["mean"] == pytest.approx(200 / 3)
    with pytest.raises(ValueError, match="SnapKV needs the whole cache for the same prompts, got none for needle 0"):
        quality_rows.made([line for line in lines() if line["method"] == "SnapKV"])
    both = made + later
    assert len(quality_rows.figure(both).axes) == 4
    monkeypatch.setattr(tables, "read", lambda name: both)
    text = tables.compression_quality()
    assert "| whole cache: 100 |" in text
    assert "| SnapKV | -25 (-75 to +0) | +0 (+0 to +0) | 10% | +25 (+0 to +75) |  |" in text


def test_a_run_writes_every_prompt_at_once(maker, monkeypatch, tmp_path, capsys) -> None:
    tiny_model(vocabulary=300, context=400).save_pretrained(tmp_path / "model")
    maker.tokenizer.save_pretrained(tmp_path / "model")
    raw, prompts = tmp_path / "raw.jsonl", tmp_path / "prompts.jsonl"
    given = ["quality", "--model", str(tmp_path / "model"), "--length", "300", "--count", "1", "--tasks", "needle"]
    given += ["--methods", "HybridKV", "SnapKV", "HeadKV", "--budgets", "0.1", "0.5", "--later", "--raw", str(raw)]
    monkeypatch.setattr(sys, "argv", [*given, "--write-prompts", str(prompts)])
    quality.main()
    found = [json.loads(line) for line in raw.read_text().splitlines()]
    arms = {(line["method"], line["budget"], line["later"]) for line in found}
    wanted = {("full", 1.0), ("SnapKV", 0.1), ("SnapKV", 0.5), ("HeadKV", 0.1), ("HeadKV", 0.5), ("HybridKV", 0.5)}
    assert arms == {(*arm, later) for arm in wanted for later in (False, True)}  # a tenth is too little for HybridKV
    assert all(line["entries"] <= line["budget"] for line in found)
    assert LongPrompt(**json.loads(prompts.read_text())).task == "needle"
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quality_rows, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(sys, "argv", ["quality", "--read", str(raw)])
    quality.main()
    assert len((tmp_path / "results" / "compression_quality.jsonl").read_text().splitlines()) == 3 * len(arms)
    assert (tmp_path / "images" / "compression_quality.png").is_file()


def test_wrong_arguments_end_at_once(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", "--raw", "raw.jsonl"])
    with pytest.raises(SystemExit):
        quality.main()
    assert "--model and --raw must be given, or --read: name a model and a file" in capsys.readouterr().err
    tiny_model(vocabulary=300, context=400).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quality", "--model", str(tmp_path), "--raw", "r", "--tasks", "problem"])
    with pytest.raises(SystemExit, match="--problems must name a file for the task problem, got none: name one"):
        quality.main()
    assert not Path("r").exists()
