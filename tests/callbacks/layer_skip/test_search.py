import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.callbacks import LayerSkipSearch, search_layers
from saccade.callbacks.layer_skip import search as layer_skip_search
from saccade.callbacks.layer_skip.costs import measure_costs
from saccade.callbacks.layer_skip.proposals import propose
from saccade.callbacks.layer_skip.timing import DecoderTimer
from saccade.common.journal import Journal
from saccade.common.progress import Bar
from saccade.inference import Autoregressive, DecodingStats, SelfSpeculative
from saccade.inference.drafting.skip_scores import (
    DraftRounds,
    DraftTrace,
    ForwardCosts,
    SkipSet,
    draft_trace,
    model_choices,
    score,
)
from tests.callbacks.tiny import TinyModule, loader, rows, tiny_llama, trainer

COSTS = ForwardCosts(attention=1.0, mlp=1.0, rest=0.5, layers=3, width=5, wide=7.0)


def run(folder: Path, model: torch.nn.Module | None = None, **settings: object) -> layer_skip_search.LayerSkipResult:
    quick = {
        "trials": 16,
        "finalists": 2,
        "repeats": 1,
        "rounds": 1,
        "max_new_tokens": 10,
        "draft_length": 4,
        "costs": COSTS,
    }
    prompts = [row[:length] for row, length in zip(rows(3), (6, 6, 9), strict=True)]
    return search_layers(
        model or tiny_llama(), prompts, folder / "skip_layers.json", progress=False, **(quick | settings)
    )


def entries(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "layer_search.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def skip_of(entry: dict) -> SkipSet:
    return SkipSet(tuple(entry["attention"]), tuple(entry["mlp"]))


def test_a_search_writes_a_file_that_the_decoder_takes_and_another_model_refuses(tmp_path) -> None:
    model = tiny_llama()
    result = run(tmp_path, model)
    assert SelfSpeculative(skip=str(tmp_path / "skip_layers.json")).skip_set(model) == {
        "attention": list(result.skip.attention),
        "mlp": list(result.skip.mlp),
    }
    with pytest.raises(ValueError, match="another model"):
        SelfSpeculative(skip=str(tmp_path / "skip_layers.json")).skip_set(tiny_llama(seed=1))
    timed = entries(tmp_path, "timing")
    assert len(timed) == 2
    fastest = min(timed, key=lambda entry: entry["seconds_per_token"])
    assert (fastest["attention"], fastest["mlp"]) == (list(result.skip.attention), list(result.skip.mlp))
    estimated = sorted(entries(tmp_path, "trial"), key=lambda entry: entry["seconds_per_token"])
    able = [entry for entry in estimated if COSTS.highest_speedup(skip_of(entry)) >= 1.03]
    assert [entry["attention"] for entry in timed] == [entry["attention"] for entry in able[:2]]
    written = json.loads((tmp_path / "skip_layers.json").read_text())
    assert written["search"]["speedup"] == result.speedup
    assert {"commit", "versions", "device"} <= set(written)


def test_acceptance_alone_would_skip_nothing(tmp_path) -> None:
    # the last layer adds nothing to the residual stream: skipping it is free, and only time can tell
    model = tiny_llama()
    torch.nn.init.zeros_(model.model.layers[2].self_attn.o_proj.weight)
    torch.nn.init.zeros_(model.model.layers[2].mlp.down_proj.weight)
    run(tmp_path, model, trials=40)
    trials = entries(tmp_path, "trial")
    empty = trials[0]
    assert empty["attention"] == empty["mlp"] == []
    assert empty["match_rate"] == 1.0 == max(trial["match_rate"] for trial in trials)
    by_acceptance = max(trials, key=lambda trial: (trial["match_rate"], -len(trial["attention"]) - len(trial["mlp"])))
    assert by_acceptance == empty
    by_time = min(trials, key=lambda trial: trial["seconds_per_token"])
    assert 2 in by_time["attention"]
    assert 2 in by_time["mlp"]
    assert by_time["seconds_per_token"] < COSTS.full <= empty["seconds_per_token"]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_any_depth(tmp_path, layers: int) -> None:
    result = run(tmp_path, tiny_llama(layers), costs=None, trials=14, finalists=1)
    assert all(layer < layers for layer in result.skip.attention + result.skip.mlp)
    assert result.trials == min(14, 4**layers), "a layer has four skip sets"
    assert entries(tmp_path, "costs")[0]["layers"] == layers


def test_a_search_that_has_tried_everything_says_so(tmp_path, recwarn) -> None:
    run(tmp_path, tiny_llama(1), trials=9, finalists=1)
    (said,) = [str(each.message) for each in recwarn if "layer search" in str(each.message)]
    assert said.startswith("saccade: the layer search ended after 4 of 9 trials, because this model has no more than 4")
    tried = [(tuple(trial["attention"]), tuple(trial["mlp"])) for trial in entries(tmp_path, "trial")]
    assert len(set(tried)) == len(tried) == 4


def test_the_same_seed_tries_the_same_sets(tmp_path) -> None:
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        run(tmp_path / name, seed=seed, trials=18)
    tried = [[(t["attention"], t["mlp"]) for t in entries(tmp_path / name, "trial")] for name in "abc"]
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]


def test_a_stopped_search_goes_on_as_if_it_had_not(tmp_path, monkeypatch) -> None:
    run(tmp_path / "whole", trials=18)
    run(tmp_path / "stopped", trials=15)
    log = tmp_path / "stopped" / "layer_search.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:14]) + lines[14][: len(lines[14]) // 2])  # torn in the middle of a line
    calls = []
    monkeypatch.setattr(layer_skip_search, "draft_trace", lambda *given: (calls.append(given), draft_trace(*given))[1])
    run(tmp_path / "stopped", trials=18)
    assert entries(tmp_path / "stopped", "trial") == entries(tmp_path / "whole", "trial")
    assert len(calls) == 18 - 13


def test_the_log_of_another_search_is_refused_and_kept(tmp_path) -> None:
    run(tmp_path, trials=2, finalists=1)
    before = (tmp_path / "layer_search.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"belongs to another search \(different: fingerprint\)"):
        run(tmp_path, tiny_llama(seed=1), trials=2)
    with pytest.raises(ValueError, match=r"different: draft_length, seed"):
        run(tmp_path, draft_length=3, seed=9)
    assert (tmp_path / "layer_search.jsonl").read_bytes() == before


def test_log_survives_a_torn_header_and_refuses_garbage(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "sea')
    log = Journal(path, {"seed": 1})
    log.append("trial", {"x": 1})
    assert Journal(path, {"seed": 1}).entries == [{"kind": "trial", "x": 1}]
    with path.open("a") as file:
        file.write("no json\n")
    with pytest.raises(ValueError, match=r"line 3 .* is not an entry of a journal"):
        Journal(path, {"seed": 1})


def test_the_trace_is_what_greedy_drafting_would_say() -> None:
    model = tiny_llama()
    prompts = [rows(3)[0, :6], rows(3)[1, :6], rows(3)[2, :9]]
    texts = []
    for prompt in prompts:
        tokens = Autoregressive().generate(model, prompt[None], max_new_tokens=10, eos_token_id=()).tokens[0]
        texts.append((torch.cat([prompt, torch.tensor(tokens)]), torch.tensor(tokens)))
        assert model_choices(model, texts[-1][0])[len(prompt) - 1 :].tolist() == tokens
    assert draft_trace(model, texts, SkipSet()).match_rate == 1.0
    skip = SkipSet((0,), (1, 2))
    trace = draft_trace(model, texts, skip)
    for (ids, tokens), matches in zip(texts, trace.matches, strict=True):
        logits = model.lm_head(model.model.norm(reference(model, ids)))[-len(tokens) - 1 : -1]
        assert (logits.argmax(-1) == tokens).tolist() == matches.tolist()


def reference(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Attention of layer 0 and MLPs of layers 1 and 2 left out, layer by layer."""
    hidden = model.model.embed_tokens(ids[None])
    rotary = model.model.rotary_emb(hidden, torch.arange(len(ids))[None])
    for index, layer in enumerate(model.model.layers):
        if index != 0:
            normed = layer.input_layernorm(hidden)
            hidden = hidden + layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
        if index == 0:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden[0]


def test_the_score_by_hand() -> None:
    # token 0 comes with the prompt. Drafts of 3: round 1 drafts 1, 2, 3 (2 of them right) and corrects 3; round 2
    # drafts 4 and 5 (6 is left for the bonus). Drafts of 2: 1, 2 and the wrong 3; then 4, 5 and the bonus 6.
    matches = [np.array([True, True, True, False, True, True, True])]
    skip = SkipSet((0,), (0, 1))
    assert COSTS.full == 6.5
    assert COSTS.draft(skip) == 3.5
    assert COSTS.verify(4) == 6.5 + 0.5 * 3 / 4
    assert DraftTrace(matches).rounds(3) == DraftRounds(rounds=2, drafted=5, tokens=6)
    found = score(DraftTrace(matches), COSTS, skip, draft_length=3)
    seconds = 2 * (2 * 3.5 + COSTS.verify(3))  # two drafted tokens in a round give the same, for less
    assert found.seconds_per_token == pytest.approx(seconds / 6)
    assert found.tokens_per_round == 3.0
    assert found.drafted_per_round == 2.0
    assert found.match_rate == pytest.approx(6 / 7)


def test_a_perfect_draft_is_scored_by_the_cost_model_and_never_above_its_bound() -> None:
    matches = [np.ones(61, dtype=bool)]
    skip = SkipSet((0, 1, 2), ())
    flat = ForwardCosts(1.0, 1.0, 0.5, 3, 5, 6.5)  # a wide verification costs no more than one token
    c = flat.draft(skip) / flat.full
    for length in (1, 2, 4, 11):
        speedup = flat.full / score(DraftTrace(matches), flat, skip, length).seconds_per_token
        assert speedup == pytest.approx((length + 1) / (length * c + 1))
        assert speedup < 1 / c


def test_the_highest_speedup_is_that_of_a_draft_that_is_always_right() -> None:
    skip = SkipSet((0, 1, 2), (0, 1))
    perfect = DraftTrace([np.ones(600, dtype=bool)])
    reached = [COSTS.speedup(perfect.rounds(length), skip) for length in range(1, COSTS.width)]
    assert COSTS.highest_speedup(skip) == pytest.approx(max(reached), rel=0.02)
    costly = replace(COSTS, wide=10.0)
    assert costly.highest_speedup(SkipSet((0,), ())) < 1.03 < costly.highest_speedup(skip)
    assert COSTS.highest_speedup(SkipSet()) < 1
    assert COSTS.of(DraftRounds(3, 0, 3), skip) == 3 * COSTS.full, "rounds without a draft are plain forwards"


def test_a_set_that_cannot_gain_is_not_timed(tmp_path) -> None:
    """One of sixty sub-layers skipped was reported as a speed-up, because the fastest of ten noisy times was."""
    costs = replace(COSTS, wide=10.0)
    run(tmp_path, trials=6, finalists=6, costs=costs)
    timed = entries(tmp_path, "timing")
    tried = [skip_of(entry) for entry in entries(tmp_path, "trial")]
    assert {len(skip) for skip in tried} >= {0, 1}
    assert {skip_of(entry) for entry in timed} == {skip for skip in tried if costs.highest_speedup(skip) >= 1.03}
    assert min(len(skip_of(entry)) for entry in timed) > 1


def test_where_nothing_gains_the_best_is_written_and_the_result_says_what_to_do(tmp_path) -> None:
    result = run(tmp_path, costs=replace(COSTS, wide=650.0), trials=6)
    assert len(entries(tmp_path, "timing")) == 1
    assert result.skip
    assert json.loads((tmp_path / "skip_layers.json").read_text())["attention"] == list(result.skip.attention)
    slow, fast = (replace(result, speedup=gain, lowest_speedup=gain, highest_speedup=gain) for gain in (1.01, 1.2))
    assert not slow.gains
    assert slow.verdict.startswith("no set of sub-layers gains on this model (the best one: 1.01x")
    assert "train it with sub-layer dropout" in slow.verdict
    assert fast.gains
    assert fast.verdict == "1.20x speed-up over autoregressive decoding (1.20 to 1.20 in single rounds)"


def test_the_reported_speedup_is_that_of_fresh_rounds(tmp_path, monkeypatch) -> None:
    """The best of several noisy times is no measurement: what is reported comes from times after the choice."""
    asked = []

    def paces(self: DecoderTimer, decoders: list, rounds: int, bar: Bar) -> list[list[float]]:
        asked.append((decoders, rounds))
        if len(asked) == 1:
            return [[0.5] * rounds for _ in decoders]  # twice as fast as what follows
        return [[1.0, 1.2, 1.1], [1.0, 1.0, 1.1]]

    monkeypatch.setattr(DecoderTimer, "paces", paces)
    result = run(tmp_path, rounds=3)
    (timed, _), (last, rounds) = asked
    assert {(decoder.control, decoder.draft_length) for decoder in timed} == {("auto", 4)}
    assert rounds == 3
    assert last[0] == Autoregressive()
    assert last[1] == SelfSpeculative(skip={"attention": list(result.skip.attention), "mlp": list(result.skip.mlp)},
                                      draft_length=4)  # fmt: skip
    assert (result.speedup, result.lowest_speedup, result.highest_speedup) == (1.0, 1.0, 1.2)
    assert (result.seconds_per_token, result.baseline_seconds_per_token) == (1.0, 1.1)
    written = json.loads((tmp_path / "skip_layers.json").read_text())["search"]
    assert written["speedup"] == 1.0
    assert written["lowest_speedup"] == 1.0


def test_times_are_of_tokens_after_the_first_and_decoders_take_turns_in_every_order(monkeypatch) -> None:
    calls = []

    def run(self: DecoderTimer, decoder: str, prompt: torch.Tensor) -> object:
        calls.append((decoder, int(prompt[0])))
        stats = DecodingStats(requests=1, new_tokens=11, seconds=100.0 + len(decoder), prefill_seconds=100.0)
        return type("Output", (), {"stats": stats})()

    monkeypatch.setattr(DecoderTimer, "_run", run)
    timer = DecoderTimer(tiny_llama(1), [torch.tensor([place]) for place in range(3)], 11)
    names = ["a", "bb", "ccc"]
    found = timer.paces(names, 2, Bar(None, None))
    assert found == [[len(name) / 10] * 2 for name in names], "prefill and first token do not count"
    assert len(calls) == timer.steps(3, 2) == 27
    for place in range(3):  # in three rounds every decoder has every place in the order once
        orders = [[name for name, prompt in calls[at : at + 9] if prompt == place] for at in (0, 9, 18)]
        assert all(sorted(column) == names for column in zip(*orders, strict=True))


def test_proposals_find_a_planted_optimum() -> None:
    switches = 24
    target = np.random.default_rng(0).random(switches) < 0.4

    def objective(bits: tuple[int, ...]) -> float:
        return 0.5 + 0.1 * float((np.array(bits) != target).sum())

    trials: list[tuple[tuple[int, ...], float]] = []
    for _ in range(60):
        bits = propose(trials, switches, seed=1)
        trials.append((bits, objective(bits)))
    assert len({bits for bits, _ in trials}) == 60
    best = [min(value for _, value in trials[: place + 1]) for place in range(60)]
    assert all(later <= earlier for earlier, later in pairwise(best))
    random_best = min(objective(tuple(row)) for row in np.random.default_rng(1).random((60, switches)) < 0.4)
    assert best[-1] <= 0.5 + 0.1 < random_best


def test_measured_costs_are_positive_and_add_up() -> None:
    costs = measure_costs(tiny_llama(3), [3, 4, 5], draft_length=4, repeats=3)
    assert costs.full > 0
    assert costs.width == 5
    assert costs.draft(SkipSet((0, 1, 2), (0, 1, 2))) == pytest.approx(costs.rest)
    assert costs.full == pytest.approx(costs.rest + 3 * (costs.attention + costs.mlp))


@pytest.mark.parametrize("when", ["fit_end", "validation_end"])
def test_callback_searches_without_disturbing_the_training(tmp_path, when: str) -> None:
    weights = []
    for name, callbacks in (
        ("plain", []),
        (
            "searched",
            [
                LayerSkipSearch(
                    when, trials=3, finalists=1, repeats=1, rounds=1, prompt_length=6, max_new_tokens=4, draft_length=2
                )
            ],
        ),
    ):
        torch.manual_seed(0)
        module = TinyModule(tiny_llama(dropout=0.2))
        runner = trainer(tmp_path / name, callbacks=callbacks, max_epochs=2)
        runner.fit(module, loader(rows(4), shuffle=True), loader(rows(3, seed=1)))
        weights.append(torch.cat([weight.detach().flatten() for weight in module.parameters()]))
    assert torch.equal(*weights)
    skip = SelfSpeculative(skip=str(tmp_path / "searched" / "skip_layers.json")).skip_set(module.model)
    assert callbacks[0].result.skip == SkipSet(tuple(skip["attention"]), tuple(skip["mlp"]))


def test_the_search_behind_a_fit_runs_where_the_model_trained(tmp_path, monkeypatch) -> None:
    """What is fast on the CPU, where Lightning leaves a model, need not be fast on a GPU."""
    steps = []
    module = TinyModule(tiny_llama())
    move, leave = module.to, module.cpu
    monkeypatch.setattr(module, "to", lambda *given: (steps.append(("to", *given)), move(*given))[1])
    monkeypatch.setattr(module, "cpu", lambda: (steps.append(("cpu",)), leave())[1])
    search = LayerSkipSearch(trials=1, finalists=1, repeats=1, prompt_length=6, max_new_tokens=4, draft_length=2)
    here = search._search_here
    monkeypatch.setattr(search, "_search_here", lambda *given: (steps.append(("search",)), here(*given))[1])
    runner = trainer(tmp_path, callbacks=[search], max_epochs=1)
    runner.fit(module, loader(rows(2)), loader(rows(2)))
    assert steps[-4:] == [("cpu",), ("to", torch.device("cpu")), ("search",), ("cpu",)]


def test_callback_needs_a_validation(tmp_path) -> None:
    runner = trainer(tmp_path, callbacks=[LayerSkipSearch(trials=1)], max_epochs=1)
    with pytest.raises(ValueError, match="the validation data contains no prompts: run a validation during fit"):
        runner.fit(TinyModule(), loader(rows(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"max_new_tokens": 1}, "max_new_tokens must be at least 2"),
        ({"draft_length": 0}, "draft_length must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_written(tmp_path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **settings)
    with pytest.raises(ValueError, match="prompts must contain at least one prompt"):
        search_layers(tiny_llama(), [], tmp_path / "skip_layers.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"when": "now"}, "when must be fit_end or validation_end"),
        ({"output": "a/b.json"}, "output must be a file name"),
        ({"max_prompts": 0}, "max_prompts must be at least 1"),
    ],
)
def test_callback_refuses_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerSkipSearch(**settings)


def test_a_log_without_a_trial_stands_in_no_ones_way(tmp_path) -> None:
    """A search that failed at its first trial leaves its costs, which are preliminary entries."""
    Journal(tmp_path / "log.jsonl", {"max_new_tokens": 1000}, ("costs",)).append("costs", {"full": 1.0})
    with pytest.raises(ValueError, match="belongs to another search"):
        Journal(tmp_path / "log.jsonl", {"max_new_tokens": 4})
    mended = Journal(tmp_path / "log.jsonl", {"max_new_tokens": 4}, ("costs",))
    assert mended.entries == []
    mended.append("trial", {"seconds_per_token": 1.0})
    assert Journal(tmp_path / "log.jsonl", {"max_new_tokens": 4}, ("costs",)).find("trial")
    with pytest.raises(ValueError, match="belongs to another search"):
        Journal(tmp_path / "log.jsonl", {"max_new_tokens": 5}, ("costs",))
