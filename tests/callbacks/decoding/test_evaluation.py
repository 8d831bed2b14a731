import json
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from saccade.callbacks import DecodingEvaluation
from saccade.callbacks.decoding import tables as decoding_tables
from saccade.callbacks.isolation import undisturbed
from saccade.inference import AssistedDecoding, Autoregressive, Decoder, PromptLookup, Sampling, SelfSpeculative
from saccade.inference.verification.near_ties import SPACINGS
from tests.callbacks.tiny import TinyModule, loader, rows, tiny_llama, trainer


@dataclass
class Greedless(Autoregressive):
    """Not lossless, and says so: changes the last token of every row."""

    lossless: ClassVar[bool] = False

    def generate(self, *args: Any, **settings: Any) -> Any:
        out = super().generate(*args, **settings)
        for tokens in out.tokens:
            tokens[-1] = 30 if tokens[-1] != 30 else 29
        return out


@dataclass
class Liar(Greedless):
    lossless: ClassVar[bool] = True


@dataclass
class Broken(Autoregressive):
    def generate(self, *args: Any, **settings: Any) -> Any:
        raise RuntimeError("no such\n  luck")


def validate(folder: Any, ids: torch.Tensor, decoders: dict[str, Decoder], **settings: Any) -> DecodingEvaluation:
    callback = DecodingEvaluation(decoders, **({"prompt_length": 6, "max_new_tokens": 8} | settings))
    trainer(folder, callbacks=[callback]).validate(TinyModule(), loader(ids), verbose=False)
    return callback


@pytest.mark.figures
def test_rows_hold_what_the_decoder_itself_reports(tmp_path) -> None:
    ids = rows(3)
    callback = validate(tmp_path, ids, {"lookup": PromptLookup()})
    model = tiny_llama()
    expected = [PromptLookup().generate(model, row[None, :6], max_new_tokens=8) for row in ids]
    pooled = expected[0].stats + expected[1].stats + expected[2].stats
    written = json.loads((tmp_path / "decoding.json").read_text())
    assert written == callback.rows
    baseline, lookup = written
    assert [baseline["name"], lookup["name"]] == ["autoregressive", "lookup"]
    for count in ("new_tokens", "verify_steps", "drafted", "accepted", "target_forwards"):
        assert lookup["statistics"][count] == getattr(pooled, count)
    assert lookup["statistics"]["acceptance_histogram"] == pooled.to_dict()["acceptance_histogram"]
    means = [out.stats.mean_acceptance_length for out in expected]
    assert lookup["per_request"]["mean_acceptance_length"] == pytest.approx(sum(means) / 3)
    assert lookup["agreement"] == {
        "identical_rows": 3,
        "differing_rows": 0,
        "differing_tokens": 0,
        "near_tie_rows": 0,
        "near_tie_limit": None,
    }
    speeds = [row["statistics"]["tokens_per_second"] for row in written]
    assert lookup["speedup"] == pytest.approx(speeds[1] / speeds[0])
    assert baseline["speedup"] == 1.0
    assert lookup["settings"] == {"max_ngram": 3, "draft_length": 8} | lookup["settings"]
    assert lookup["lossless"] is True
    assert lookup["ranks"] == 1
    assert {"commit", "dirty", "versions", "device", "date", "seed", "command"} <= set(lookup)
    assert (tmp_path / "decoding.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoding.json", "decoding.png"]


def test_statistics_are_logged_under_their_names(tmp_path) -> None:
    callback = DecodingEvaluation({"lookup": PromptLookup()}, prompt_length=6, max_new_tokens=8)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.validate(TinyModule(), loader(rows(2)), verbose=False)
    metrics = runner.callback_metrics
    for statistic in ("mean_acceptance_length", "tokens_per_second", "target_forwards", "kv_cache_bytes"):
        assert metrics[f"decoding/lookup/{statistic}"] == pytest.approx(callback.rows[1]["statistics"][statistic])
    assert metrics["decoding/lookup/speedup"] == pytest.approx(callback.rows[1]["speedup"])
    assert "val_loss" in metrics


def test_lossy_and_lying_decoders_are_told_apart(tmp_path, capsys) -> None:
    callback = validate(tmp_path, rows(3), {"lossy": Greedless(), "liar": Liar()})
    lossy, liar = callback.rows[1:]
    assert lossy["agreement"] == {
        "identical_rows": 0,
        "differing_rows": 3,
        "differing_tokens": 3,
        "near_tie_rows": None,
        "near_tie_limit": None,
    }
    assert liar["agreement"]["near_tie_rows"] == 0
    assert 1e-16 < liar["agreement"]["near_tie_limit"] < 1e-13
    printed = capsys.readouterr().out
    assert "lossy (lossy)" in printed
    assert "liar: 3 of 3 rows differ from the baseline, in 3 tokens; in 0 of them" in printed
    assert "lossy: 3 of 3" not in printed


def test_a_difference_at_a_tie_of_the_target_is_counted_as_one(tmp_path) -> None:
    callback = DecodingEvaluation({"liar": Liar()}, prompt_length=6, max_new_tokens=8)
    module = TinyModule(tiny_llama().float())
    nn.init.zeros_(module.model.lm_head.weight)  # all logits equal: every token ties
    trainer(tmp_path, callbacks=[callback]).validate(module, loader(rows(2)), verbose=False)
    assert callback.rows[1]["agreement"] == {
        "identical_rows": 0,
        "differing_rows": 2,
        "differing_tokens": 2,
        "near_tie_rows": 2,
        "near_tie_limit": SPACINGS[torch.float32] * 2.0**-149,
    }
    # one token over and over: no distinct 4-grams to speak of
    assert callback.rows[1]["quality"]["degenerate"] is True
    assert "degenerate" in " ".join(decoding_tables.notes(callback.rows))


def test_batches_agree_with_single_prompts(tmp_path) -> None:
    ids = rows(5)
    one = validate(tmp_path, ids, {"lookup": PromptLookup()})
    three = validate(tmp_path, ids, {"lookup": PromptLookup()}, batch_size=3)
    for count in ("requests", "new_tokens", "verify_steps", "drafted", "accepted", "acceptance_histogram"):
        assert one.rows[1]["statistics"][count] == three.rows[1]["statistics"][count]
    assert three.rows[1]["agreement"]["identical_rows"] == 5


@dataclass
class Remembering(PromptLookup):
    """Keeps the text that it wrote for each prompt."""

    texts: ClassVar[dict[tuple[int, ...], list[int]]] = {}

    def generate(self, model: Any, input_ids: Any, **settings: Any) -> Any:
        out = super().generate(model, input_ids, **settings)
        self.texts.update(zip(map(tuple, input_ids), out.tokens, strict=True))
        return out


@pytest.mark.parametrize("coupling", ["gumbel", "rejection"])
def test_sampling_depends_on_seed_and_prompt_alone(tmp_path, coupling: str) -> None:
    def sampled(ids: torch.Tensor, seed: int = 5, **settings: Any) -> tuple[dict[tuple[int, ...], list[int]], Any]:
        Remembering.texts.clear()
        sampling = Sampling(temperature=2.0, seed=seed, coupling=coupling)
        callback = validate(tmp_path, ids, {"one": Remembering()}, sampling=sampling, **settings)
        return dict(Remembering.texts), callback.rows[1]["agreement"]

    first, agreement = sampled(rows(4))
    assert len(first) == 4
    assert sampled(rows(4).flip(0))[0] == first
    assert sampled(rows(4), batch_size=3)[0] == first
    assert sampled(rows(4), seed=99)[0] != first
    # draws that are shared make the same texts, which can be compared
    assert agreement is None if coupling == "rejection" else agreement["identical_rows"] == 4


def test_sampled_texts_of_a_lying_decoder_are_no_near_ties(tmp_path) -> None:
    callback = validate(tmp_path, rows(3), {"liar": Liar()}, sampling=Sampling(top_p=0.9, seed=1))
    assert callback.rows[1]["agreement"]["differing_rows"] == 3
    assert callback.rows[1]["agreement"]["near_tie_rows"] == 0


def test_a_threshold_that_is_carried_starts_afresh_for_every_prompt(tmp_path) -> None:
    skip = {"attention": [1], "mlp": [0, 1]}
    decoder = SelfSpeculative(skip=skip, draft_length=4, gamma=0.3, epsilon=1.0, beta2=0.1)
    runs = [validate(tmp_path, ids, {"self": decoder}) for ids in (rows(4), rows(4).flip(0))]
    assert runs[0].rows[1]["statistics"]["drafted"] == runs[1].rows[1]["statistics"]["drafted"]
    assert runs[0].rows[1]["settings"]["carry"] is False
    assert decoder._carried == []


def fitted(folder: Any, callbacks: list) -> tuple[TinyModule, list]:
    seed_everything(7, verbose=False)
    module = TinyModule(tiny_llama(dropout=0.2))
    module.train()
    module.model.model.layers[0].eval()  # a part that is meant to stay in evaluation mode
    runner = trainer(folder, callbacks=callbacks, max_epochs=2, num_sanity_val_steps=1)
    runner.fit(module, loader(rows(6), shuffle=True), loader(rows(4, seed=1)))
    draws = [torch.rand(1).item(), float(np.random.rand()), random.random()]  # noqa: NPY002
    assert module.model.model.layers[0].training is False
    assert module.model.model.layers[1].training is True
    return module, draws


def test_training_with_decoding_is_the_training_without(tmp_path) -> None:
    plain, draws = fitted(tmp_path / "plain", [])
    decoders = {"self": SelfSpeculative(skip={"attention": [1], "mlp": [1]}, draft_length=3), "drawn": Drawing()}
    callback = DecodingEvaluation(decoders, prompt_length=6, max_new_tokens=6, every_n_validations=2)
    observed, after = fitted(tmp_path / "observed", [callback])
    assert callback.rows[0]["epoch"] == 1
    assert callback.rows[0]["stage"] == "fit"
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, observed.get_parameter(name)), name
    assert draws == after


@dataclass
class Drawing(Autoregressive):
    """Uses up all the global generators."""

    def generate(self, *args: Any, **settings: Any) -> Any:
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        return super().generate(*args, **settings)


def test_modes_and_generators_come_back_after_an_exception() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout())
    module[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)

    def fail() -> None:
        with undisturbed(module):
            assert not module[0].training
            assert not torch.is_grad_enabled()
            torch.rand(9)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [part.training for part in module] == [True, False]
    assert torch.equal(torch.rand(2), expected)


def test_every_nth_validation_of_fit_and_no_sanity_check(tmp_path) -> None:
    callback = DecodingEvaluation({}, prompt_length=6, max_new_tokens=2, every_n_validations=3)
    runner = trainer(tmp_path, callbacks=[callback], max_epochs=2, num_sanity_val_steps=2)
    runner.fit(TinyModule(), loader(rows(2)), loader(rows(2)))
    assert callback.rows == []
    assert not (tmp_path / "decoding.json").exists()
    runner.validate(TinyModule(), loader(rows(2)), verbose=False)
    assert callback.rows[0]["statistics"]["requests"] == 2


def test_limits_beyond_the_model_are_told_before_the_first_step(tmp_path) -> None:
    module = TinyModule()
    before = [weight.clone() for weight in module.parameters()]
    runner = trainer(tmp_path, callbacks=[DecodingEvaluation({}, prompt_length=6, max_new_tokens=124)], max_epochs=1)
    with pytest.raises(
        ValueError, match="DecodingEvaluation: a prompt of 6 tokens and 124 new ones need 129 positions"
    ):
        runner.fit(module, loader(rows(2)), loader(rows(2)))
    assert runner.global_step == 0
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    fits = DecodingEvaluation({}, prompt_length=6, max_new_tokens=123, every_n_validations=9)
    trainer(tmp_path, callbacks=[fits], max_epochs=1).fit(module, loader(rows(2)), loader(rows(2)))


def test_padding_is_not_part_of_a_prompt(tmp_path) -> None:
    ids = rows(1, length=10)[0]
    batches = [
        {"input_ids": torch.stack([ids, ids.roll(4)]), "attention_mask": torch.tensor([[1] * 6 + [0] * 4] * 2)},
        # the same text as the first row, padded on the other side: one prompt
        {"input_ids": ids.roll(4)[None], "attention_mask": torch.tensor([[0] * 4 + [1] * 6])},
    ]
    callback = DecodingEvaluation({}, prompt_length=4, max_new_tokens=4)
    module = TinyModule()
    module.validation_step = lambda *_: None
    trainer(tmp_path, callbacks=[callback]).validate(module, DataLoader(batches, batch_size=None), verbose=False)
    stats = callback.rows[0]["statistics"]
    assert stats["requests"] == 2
    assert stats["prompt_tokens"] == 8
    prompts = [ids[None, :4], ids.roll(4)[None, :4]]
    expected = [Autoregressive().generate(tiny_llama(), prompt, max_new_tokens=4) for prompt in prompts]
    assert stats["new_tokens"] == sum(out.stats.new_tokens for out in expected)


def test_a_failing_decoder_is_named_in_one_line_and_nothing_is_written(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^decoders.bad \(Broken\) failed: no such luck$"):
        validate(tmp_path, rows(2), {"bad": Broken()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_length": 0}, "prompt_length must be at least 1, got 0"),
        ({"max_prompts": -1}, "max_prompts must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"decoders": {"a/b": PromptLookup()}}, "names that can be logged, got 'a/b'"),
        ({"decoders": {"a": "lookup"}}, "must be a saccade.inference.Decoder, got str"),
        (
            {"decoders": {"autoregressive": PromptLookup()}},
            "decoders.autoregressive must be Autoregressive, got PromptLookup",
        ),
        ({"decoders": {}, "baseline": False}, "decoders must name a decoder if baseline is false"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingEvaluation(**({"decoders": {"lookup": PromptLookup()}} | settings))


def test_batches_without_prompts_are_refused(tmp_path) -> None:
    module = TinyModule()
    module.validation_step = lambda *_: None
    runner = trainer(tmp_path, callbacks=[DecodingEvaluation({})])
    with pytest.raises(ValueError, match=r"validation batches must have input_ids of shape \[rows, length\]"):
        runner.validate(module, DataLoader([{"pixels": torch.zeros(2, 3)}]), verbose=False)


def test_a_run_folder_that_is_a_file_is_refused(tmp_path) -> None:
    folder = tmp_path / "occupied"
    folder.write_text("")
    with pytest.raises(ValueError, match=r"cannot create the run folder .*occupied"):
        validate(folder, rows(1), {})


def test_the_table_fits_80_columns(tmp_path) -> None:
    callback = validate(tmp_path, rows(2), {"self_speculative": PromptLookup(), "relaxed": Greedless()})
    screen = Console(width=80, record=True)
    screen.print(decoding_tables.table(callback.rows))
    text = screen.export_text()
    assert "…" not in text
    assert "self_speculative" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80


def test_a_second_evaluation_would_replace_the_results_of_the_first(tmp_path) -> None:
    both = [DecodingEvaluation({name: PromptLookup()}, prompt_length=6, max_new_tokens=2) for name in ("one", "two")]
    runner = trainer(tmp_path, callbacks=both, max_epochs=1)
    with pytest.raises(ValueError, match=r"one DecodingEvaluation, got 2 \(one and two\).*name all decoders in one"):
        runner.fit(TinyModule(), loader(rows(2)), loader(rows(2)))


@pytest.mark.parametrize(
    ("decoder", "setting"),
    [
        (AssistedDecoding("runs/none/latest/model"), "draft_model"),
        (SelfSpeculative(skip="runs/none/latest/skip.json"), "skip"),
    ],
)
def test_what_a_decoder_reads_is_looked_for_before_the_training(tmp_path, decoder, setting) -> None:
    runner = trainer(tmp_path, callbacks=[DecodingEvaluation({"one": decoder}, prompt_length=6)], max_epochs=1)
    with pytest.raises(ValueError, match=f"decoders.one.{setting} must be an existing path, got runs/none/latest"):
        runner.fit(TinyModule(), loader(rows(2)), loader(rows(2)))
    assert runner.global_step == 0


def test_settings_of_the_models_generation_config_are_left_out_and_named(tmp_path) -> None:
    plain = DecodingEvaluation({"lookup": PromptLookup()}, prompt_length=6, max_new_tokens=8)
    trainer(tmp_path / "plain", callbacks=[plain]).validate(TinyModule(), loader(rows(2)), verbose=False)
    module = TinyModule()
    module.model.generation_config.update(repetition_penalty=1.3, do_sample=True, temperature=0.7)
    callback = DecodingEvaluation({"lookup": PromptLookup()}, prompt_length=6, max_new_tokens=8)
    with pytest.warns(UserWarning, match=r"decodes without repetition_penalty=1\.3 of the model's generation config"):
        trainer(tmp_path / "penalty", callbacks=[callback]).validate(module, loader(rows(2)), verbose=False)
    for row, other in zip(callback.rows, plain.rows, strict=True):
        assert row["statistics"]["accepted"] == other["statistics"]["accepted"]
        assert row["agreement"] == other["agreement"]
