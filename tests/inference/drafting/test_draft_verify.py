"""Must show 3: properties 14 to 20 of a correct Draft & Verify; what concerns the search is tested with the search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from saccade.inference import Autoregressive, Sampling, SelfSpeculative, Session
from saccade.inference.drafting.layer_skip import LayerSkipDrafter, ThresholdController
from saccade.inference.drafting.skip_sets import read_skip_file, spread_skip_set, write_skip_file
from saccade.inference.huggingface.sublayer_skip import skipped_sublayers
from tests.support.models import prompts, tiny_model

NOTHING: dict[str, list[int]] = {"attention": [], "mlp": []}
EVERYTHING = {"attention": [0, 1, 2], "mlp": [0, 1, 2]}
HALF = {"attention": [1, 2], "mlp": [1]}


def static(skip: dict[str, list[int]], draft_length: int, gamma: float = 0.0) -> SelfSpeculative:
    return SelfSpeculative(skip=skip, draft_length=draft_length, gamma=gamma, adaptive=False)


@pytest.mark.parametrize("draft_length", [1, 4, 12])
def test_14_with_nothing_skipped_every_draft_is_accepted(draft_length: int) -> None:
    model = tiny_model("qwen3", dtype=torch.float32)
    batch = prompts(model, [9, 4, 13])
    out = static(NOTHING, draft_length).generate(model, **batch, max_new_tokens=60)
    assert out.stats.draft_acceptance_rate == 1.0
    assert out.tokens == Autoregressive().generate(model, **batch, max_new_tokens=60).tokens
    # and nothing is won: drafted tokens and bonus cost a full forward each
    alone = static(NOTHING, draft_length).generate(model, batch["input_ids"][2:], max_new_tokens=60).stats
    assert alone.draft_forwards + alone.target_forwards == alone.new_tokens


@pytest.mark.parametrize("skip", [EVERYTHING, {"attention": [0, 1, 2]}, {"mlp": [0, 1, 2]}])
@pytest.mark.parametrize("sampling", [None, Sampling(seed=2)], ids=["greedy", "sampled"])
def test_14_with_everything_skipped_the_output_is_still_exact(
    skip: dict[str, list[int]], sampling: Sampling | None
) -> None:
    model = tiny_model("qwen2")
    batch = prompts(model, [9, 4, 13])
    out = static(skip, 5).generate(model, **batch, max_new_tokens=60, sampling=sampling)
    assert out.stats.drafted > 100
    if sampling is None:
        assert out.tokens == Autoregressive().generate(model, **batch, max_new_tokens=60).tokens
        assert out.stats.draft_acceptance_rate < 0.5


def test_14_positions_do_not_come_from_a_skipped_layer() -> None:
    # all attention but the last layer's is skipped: the draft is right only if that layer knows the positions
    model = tiny_model("llama")
    for layer in model.model.layers[:2]:
        layer.self_attn.o_proj.weight.data.zero_()
    out = static({"attention": [0, 1]}, 4).generate(model, **prompts(model, [9, 4]), max_new_tokens=41)
    assert out.stats.draft_acceptance_rate == 1.0


def test_15_the_draft_reads_the_targets_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    batch = prompts(model, [50, 20])
    prefills: list[int] = []
    widths: dict[bool, set[int]] = {False: set(), True: set()}
    prefill, forward = Session.prefill, Session.forward

    def counted_prefill(self: Session, texts: Any, visual: Any = None) -> torch.Tensor:
        prefills.append(len(texts))
        return prefill(self, texts, visual)

    def counted_forward(self: Session, tokens: torch.Tensor, tree: Any = None, *, skipped: bool = False) -> Any:
        widths[skipped].add(tokens.shape[1])
        return forward(self, tokens, tree, skipped=skipped)

    monkeypatch.setattr(Session, "prefill", counted_prefill)
    monkeypatch.setattr(Session, "forward", counted_forward)
    alone = Autoregressive().generate(model, **batch, max_new_tokens=40).stats
    prefills.clear(), widths[False].clear()
    out = static(HALF, 6).generate(model, **batch, max_new_tokens=40).stats
    assert prefills == [2]  # one, of the target
    assert widths[True] == {1}  # the draft never reads a prefix
    assert max(widths[False]) == 7
    token = 2 * 3 * 2 * 8 * 8  # keys and values of 3 layers, 2 heads of 8 in float64
    assert out.kv_cache_bytes - alone.kv_cache_bytes <= 2 * (6 + 1) * token
    assert alone.kv_cache_bytes == 2 * (50 + 40) * token


def test_16_controller_traces_to_the_last_digit() -> None:
    controller = ThresholdController(gamma=0.6)
    gammas, means = [], []
    for _ in range(5):
        controller.update(4, 5, 12)
        gammas.append(controller.gamma)
        means.append(controller.acceptance)
    assert gammas == pytest.approx([0.601, 0.602, 0.603, 0.604, 0.605], abs=1e-15)
    assert means == pytest.approx([0.4, 0.6, 0.7, 0.75, 0.775], abs=1e-15)
    controller = ThresholdController(gamma=0.6)
    gammas = []
    for _ in range(8):
        controller.update(12, 12, 12)
        gammas.append(controller.gamma)
    assert gammas == pytest.approx([0.601, 0.602, *[0.603] * 6], abs=1e-15)


def test_16_the_controller_lowers_bounds_and_ignores_empty_rounds() -> None:
    controller = ThresholdController(gamma=0.6, acceptance=1.0)
    controller.update(3, 3, 12)  # all accepted, stopped early: it may be bolder
    assert controller.gamma == pytest.approx(0.599, abs=1e-15)
    before = (controller.gamma, controller.acceptance)
    controller.update(0, 0, 12)
    assert (controller.gamma, controller.acceptance) == before
    for _ in range(5000):
        controller.update(3, 3, 12)
    assert controller.gamma == 0.05
    for _ in range(5000):
        controller.update(0, 3, 12)
    assert controller.gamma == 0.99


def test_16_the_controller_runs_in_the_loop_and_gamma_is_carried() -> None:
    model = tiny_model(residual=0.5)
    ids = prompts(model, [9])["input_ids"]
    decoder = SelfSpeculative(skip=HALF, draft_length=6, gamma=0.3)
    for _ in range(2):
        expected = ThresholdController(decoder._carried[-1] if decoder._carried else 0.3)
        out = _recorded(decoder, model, ids)
        for counts, accepted, _ in out:
            expected.update(accepted, counts, 6)
        assert decoder._carried == [pytest.approx(expected.gamma, abs=1e-15)]
    fresh = SelfSpeculative(skip=HALF, draft_length=6, gamma=0.3, carry=False)
    runs = [fresh.generate(model, ids, max_new_tokens=40, sampling=Sampling(seed=1)).stats for _ in range(2)]
    assert runs[0].drafted == runs[1].drafted  # a seed fixes a call, whatever was decoded before


def _recorded(
    decoder: SelfSpeculative, model: PreTrainedModel, ids: torch.Tensor
) -> list[tuple[int, int, list[float]]]:
    """Drafted, accepted and the draft's confidences for every round of a batch of one."""
    rounds: list[tuple[int, int, list[float]]] = []
    confidences: list[float] = []
    original, step = decoder.drafter, LayerSkipDrafter.step

    def recorded_step(self: LayerSkipDrafter, run: Any, tokens: torch.Tensor) -> torch.Tensor:
        logits = step(self, run, tokens)
        confidences.append(float(logits.softmax(-1).max()))
        return logits

    def drafter(target: Any, request: Any) -> Any:
        made = original(target, request)
        observe = made.observe

        def recorded(run: Any, draft: Any, verdicts: Any) -> None:
            rounds.append((draft.counts[0], len(verdicts[0].path) - 1, list(confidences)))
            confidences.clear()
            observe(run, draft, verdicts)

        made.observe = recorded
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerSkipDrafter, "step", recorded_step)
        patch.setattr(decoder, "drafter", drafter)
        decoder.generate(model, ids, max_new_tokens=40)
    return rounds


def test_17_a_low_confidence_token_is_kept_and_verified_and_drafting_stops() -> None:
    model = tiny_model(residual=0.5)
    ids = prompts(model, [9])["input_ids"]
    rounds = _recorded(static(HALF, 6, gamma=0.15), model, ids)[1:]
    stopped = 0
    for drafted, _, confidences in rounds[:-6]:  # the last ones may be cut by the length limit
        assert len(confidences) == drafted  # one draft forward for each drafted token
        assert all(confidence >= 0.15 for confidence in confidences[:-1])
        assert confidences[-1] < 0.15 or drafted == 6
        stopped += confidences[-1] < 0.15
    assert stopped > 3
    assert any(accepted == drafted and c[-1] < 0.15 for drafted, accepted, c in rounds if c)  # it can be right
    # nothing is sure enough: one token a round, still verified
    always = static(HALF, 6, gamma=1.0).generate(model, ids, max_new_tokens=40).stats
    assert always.drafted in (always.verify_steps, always.verify_steps - 1)
    assert always.draft_forwards == always.drafted


def test_17_confidence_is_the_raw_softmax_also_when_sampling() -> None:
    # at temperature 100 the sampled distribution is flat, but the raw one is what the threshold looks at
    model = tiny_model(sharpness=20.0, residual=0.1)
    ids = prompts(model, [9])["input_ids"]
    sampling = Sampling(temperature=100.0, top_k=1, seed=1)
    out = static(NOTHING, 6, gamma=0.4).generate(model, ids, max_new_tokens=43, sampling=sampling)
    assert out.stats.drafted / out.stats.verify_steps > 4


def test_18_a_skip_file_is_read_for_its_model_only(tmp_path: Any) -> None:
    model, path = tiny_model(), tmp_path / "skip_layers.json"
    write_skip_file(path, model, {2, 1}, [1], {"speedup": 1.5})
    assert read_skip_file(path, model) == HALF
    assert read_skip_file(path, tiny_model(dtype=torch.bfloat16)) == HALF
    with pytest.raises(ValueError, match="another model"):
        read_skip_file(path, tiny_model(seed=1))


@pytest.mark.parametrize("layers", [1, 2, 3, 8, 40])
def test_18_the_even_spread_works_for_any_depth(layers: int) -> None:
    spread = spread_skip_set(layers, 0.45)
    assert len(spread["attention"]) + len(spread["mlp"]) == round(0.45 * 2 * max(layers - 2, 0))
    for kind in spread.values():
        assert kind == sorted(set(kind))
        assert all(0 < layer < layers - 1 for layer in kind)


def draft_cost(model: PreTrainedModel, skip: dict[str, list[int]]) -> float:
    """Operations of a forward with skipped sub-layers, relative to a full one."""
    token = torch.tensor([[1]])
    with skipped_sublayers(model, [0], [0]):  # the first skipped part of a class is computed once, for its form
        model(token)
    with FlopCounterMode(display=False) as full:
        model(token)
    with FlopCounterMode(display=False) as part, skipped_sublayers(model, skip.get("attention", []), skip["mlp"]):
        model(token)
    return part.get_total_flops() / full.get_total_flops()


@pytest.mark.parametrize("residual", [0.0, 0.3])
@pytest.mark.parametrize("draft_length", [1, 3, 8])
def test_19_and_20_counted_speed_is_what_the_formula_says_and_below_its_bound(
    draft_length: int, residual: float
) -> None:
    model = tiny_model(residual=residual, layers=6, vocabulary=20, hidden=16)
    skip = {"attention": [1, 2, 3, 4], "mlp": [2, 3]}
    c = draft_cost(model, skip)
    assert 0.4 < c < 0.8
    tokens = 1 + 12 * (draft_length + 1)
    ids = prompts(model, [9])["input_ids"]
    stats = static(skip, draft_length).generate(model, ids, max_new_tokens=tokens).stats
    # behind the prefill, in units of a full forward; a verification costs one, as it does where memory is the limit
    cost = stats.draft_forwards * c + (stats.target_forwards - 1)
    speedup = (tokens - 1) / cost
    drafted = stats.drafted / stats.verify_steps
    predicted = stats.mean_acceptance_length / (drafted * c + 1)
    assert speedup == pytest.approx(predicted, rel=0.05 if residual == 0.0 else 0.1)
    assert speedup < 1 / c
    if residual == 0.0:  # a perfect draft comes as close to the bound as its length allows
        assert stats.draft_acceptance_rate == 1.0
        assert speedup == pytest.approx((draft_length + 1) / (draft_length * c + 1))


def test_20_the_bound_holds_for_the_documented_case() -> None:
    # half the cost, acceptance 0.9, draft length 3: 1.376 at best, never 2
    accepted = sum(0.9**i for i in range(1, 4))
    assert (1 + accepted) / (3 * 0.5 + 1) == pytest.approx(1.376, abs=5e-4)
