"""`SelfSpeculative(skip="auto")`: what to skip is chosen on the first prompt, or nothing is drafted."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import Autoregressive, Sampling, SelfSpeculative
from saccade.inference.drafting import auto_skip
from saccade.inference.drafting.auto_skip import LEAST_PLACES, MOST_FORWARDS, MOST_PLACES, AutoSkip, counted_costs
from saccade.inference.drafting.skip_scores import SkipSet
from saccade.inference.huggingface.sublayer_skip import skipped_sublayers
from saccade.inference.request import Request
from tests.support.models import prompts, tiny_model
from tests.support.processes import TIME_LIMIT, environment

NOTHING: dict[str, list[int]] = {"attention": [], "mlp": []}


def copying(layers: int = 8, **settings: object) -> PreTrainedModel:
    """A model whose inner layers add nothing: without them it writes the same."""
    model = tiny_model(layers=layers, **settings)
    with torch.no_grad():
        for layer in model.model.layers[1:-1]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def ordinary(**settings: object) -> PreTrainedModel:
    return tiny_model(layers=8, seed=3, **settings)


def count_forwards(model: PreTrainedModel) -> list[int]:
    """Widths of all forwards of a model from here on."""
    widths: list[int] = []
    model.model.register_forward_hook(
        lambda module, given, named, out: widths.append(out.last_hidden_state.shape[1]), with_kwargs=True
    )
    return widths


def test_a_model_that_needs_few_layers_gets_the_largest_set() -> None:
    model = copying()
    ids = prompts(model, [50])["input_ids"]
    decoder = SelfSpeculative()
    out = decoder.generate(model, ids, max_new_tokens=30)
    skip = decoder.skip_set(model)
    assert len(skip["attention"]) + len(skip["mlp"]) == round(0.6 * 12)
    assert out.stats.drafted > 0, "the first call drafts already"
    assert out.stats.draft_acceptance_rate == 1.0
    assert out.tokens == Autoregressive().generate(model, ids, max_new_tokens=30).tokens


def test_an_ordinary_model_drafts_nothing_says_so_once_and_costs_the_budget_once() -> None:
    model = ordinary()
    ids = prompts(model, [50])["input_ids"]
    widths = count_forwards(model)
    plain = Autoregressive().generate(model, ids, max_new_tokens=30)
    alone = list(widths)
    decoder = SelfSpeculative()
    with pytest.warns(
        UserWarning, match=r"skip='auto'\) drafts nothing .*sub-layer dropout, search .* another decoder"
    ):
        first = decoder.generate(model, ids, max_new_tokens=30)
    spent = len(widths) - 2 * len(alone)
    assert 1 < spent <= MOST_FORWARDS
    assert first.stats.draft_forwards == spent, "the forwards of the choice are counted"
    del widths[:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = decoder.generate(model, ids, max_new_tokens=30)
    assert widths == alone, "later calls make the forwards of autoregressive decoding and no others"
    assert first.tokens == second.tokens == plain.tokens
    assert second.stats.drafted == second.stats.draft_forwards == 0
    assert decoder.skip_set(model) == NOTHING


@pytest.mark.draft_control
def test_without_a_set_there_is_no_draft_control() -> None:
    model, decoder = ordinary(), SelfSpeculative()
    ids = prompts(model, [50])["input_ids"]
    request = Request.read(model, ids, None, 8, None, None, None)
    assert decoder.draft_control(model, request) is not None
    with pytest.warns(UserWarning, match="drafts nothing"):
        decoder.generate(model, ids, max_new_tokens=8)
    assert decoder.draft_control(model, request) is None


def test_short_prompts_wait_until_they_are_enough_together() -> None:
    model, decoder = copying(), SelfSpeculative()
    short = prompts(model, [LEAST_PLACES // 2])["input_ids"]
    plain = Autoregressive().generate(model, short, max_new_tokens=20).tokens
    for call in range(3):
        out = decoder.generate(model, short, max_new_tokens=20)
        assert out.tokens == plain
        assert (out.stats.drafted > 0) == (call == 2), "16 and 16 tokens have 31 places after one another"
        assert (decoder.skip_set(model) == NOTHING) == (call < 2)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.9, seed=5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("made", [copying, ordinary])
@pytest.mark.filterwarnings("ignore:saccade. SelfSpeculative")
def test_texts_are_those_of_the_model(made, sampling: Sampling | None) -> None:
    model = made()
    batch = prompts(model, [40, 3, 17])
    decoder = SelfSpeculative(draft_length=4)
    right = Autoregressive().generate(model, **batch, max_new_tokens=25, sampling=sampling)
    for _ in range(2):
        assert decoder.generate(model, **batch, max_new_tokens=25, sampling=sampling).tokens == right.tokens
    assert (decoder.skip_set(model) != NOTHING) == (made is copying)


def test_texts_of_rejection_sampling_do_not_depend_on_earlier_prompts() -> None:
    model, decoder = copying(), SelfSpeculative()
    ids = prompts(model, [50])["input_ids"]
    sampling = Sampling(seed=3, coupling="rejection")
    fresh = SelfSpeculative().generate(model, ids, max_new_tokens=20, sampling=sampling)
    decoder.generate(model, prompts(model, [60], seed=9)["input_ids"], max_new_tokens=20)
    again = decoder.generate(model, ids, max_new_tokens=20, sampling=sampling)
    assert fresh.tokens == again.tokens
    assert fresh.stats.drafted == again.stats.drafted == 0


def test_the_choice_is_the_decoders_own_for_each_model() -> None:
    first, second, decoder = copying(8), copying(6), SelfSpeculative()
    for model in (first, second, first):
        batch = prompts(model, [50])
        out = decoder.generate(model, **batch, max_new_tokens=12)
        assert out.tokens == Autoregressive().generate(model, **batch, max_new_tokens=12).tokens
        assert out.stats.drafted > 0
    assert max(decoder.skip_set(second)["mlp"]) < 5 < max(decoder.skip_set(first)["mlp"])
    for other in (decoder.independent(), copy.copy(decoder), pickle.loads(pickle.dumps(decoder))):  # noqa: S301
        assert other.skip_set(first) == NOTHING, "a copy chooses for itself"
    decoder.release()
    assert decoder.skip_set(first) == NOTHING


def test_the_same_prompts_give_the_same_set_whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copying()
    found = []
    for pace in (1.0, -5.0):
        ticks = iter(range(1, 10**6))
        monkeypatch.setattr("time.perf_counter", lambda ticks=ticks, pace=pace: pace * next(ticks))
        decoder = SelfSpeculative()
        decoder.generate(model, prompts(model, [50])["input_ids"], max_new_tokens=12)
        found.append(decoder.skip_set(model))
    assert found[0] == found[1] != NOTHING


def test_a_session_opened_before_the_choice_drafts_after_it() -> None:
    model, decoder = copying(), SelfSpeculative()
    ids = prompts(model, [40])["input_ids"]
    with decoder.session(model, 200) as session:
        for _ in range(2):
            right = Autoregressive().generate(model, ids, max_new_tokens=20)
            with decoder.start(model, ids, max_new_tokens=20, session=session) as run:
                list(run)
            assert run.output().tokens == right.tokens
            assert run.output().stats.drafted > 0
            ids = torch.cat([right.sequences, ids[:, :5]], 1)
    with (
        Autoregressive().session(model, 200) as other,
        pytest.raises(ValueError, match=r"session .* open it with decoder\.session"),
    ):
        SelfSpeculative().start(model, ids, max_new_tokens=20, session=other)


def test_graph_steps_skip_what_was_chosen_after_the_first_capture() -> None:
    model = copying(dtype=torch.float32)
    decoder = SelfSpeculative(engine="graph")
    decoder.pool.uncaptured = True
    ids = prompts(model, [40])["input_ids"]
    right = Autoregressive().generate(model, ids, max_new_tokens=20).tokens
    short = decoder.generate(model, ids[:, :10], max_new_tokens=20)  # an engine from before the choice
    assert short.stats.drafted == 0
    for _ in range(2):
        out = decoder.generate(model, ids, max_new_tokens=20)
        assert out.tokens == right
        assert out.stats.draft_acceptance_rate == 1.0


def test_at_most_128_places_are_read_and_nothing_is_left_on_the_model() -> None:
    model = copying(context=512).train()
    before = {name: sorted(vars(part)) for name, part in model.named_modules()}
    widths = count_forwards(model)
    auto = AutoSkip(model, 12)
    assert auto.choose(model, [list(range(1, 40)) * 10] * 3) == len(widths) == MOST_FORWARDS
    assert set(widths) == {MOST_PLACES + 1}
    assert auto.choose(model, [[1, 2, 3]]) == 0
    assert model.training
    assert {name: sorted(vars(part)) for name, part in model.named_modules()} == before


def test_marks_of_a_chat_template_do_not_cut_a_prompt_and_placeholders_of_images_do() -> None:
    model = copying()
    model.config.eos_token_id = model.generation_config.eos_token_id = 5
    chat = [5, *range(6, 39), 5, 7]  # as templates that end every message with EOS
    auto = AutoSkip(model, 4)
    assert auto.choose(model, [chat]) > 0
    model.config.image_token_id = 5
    assert AutoSkip(model, 4).choose(model, [chat]) == 0, "one token stands behind the last image"


def test_models_with_too_few_layers_draft_nothing() -> None:
    model, decoder = tiny_model(layers=2), SelfSpeculative()
    with pytest.warns(UserWarning, match="too few layers to skip some"):
        out = decoder.generate(model, prompts(model, [50])["input_ids"], max_new_tokens=8)
    assert out.stats.draft_forwards == 0


def test_costs_are_bytes_of_the_weights_that_a_forward_reads() -> None:
    model = tiny_model(layers=3, dtype=torch.float32)
    costs = counted_costs(model, 4)
    read = sum(weight.numel() for name, weight in model.named_parameters() if "embed" not in name) * 4
    assert costs.full == read - model.model.norm.weight.numel() * 4
    assert costs.draft(SkipSet((0, 1, 2), (0, 1, 2))) == model.lm_head.weight.numel() * 4


def test_ranks_choose_from_the_prompts_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without a prompt makes the same forwards and reads the sums."""
    model = copying()
    sums: list[list[int]] = []

    def recorded(total: torch.Tensor) -> None:
        sums.append(total.tolist())

    monkeypatch.setattr(auto_skip.dist, "all_reduce", recorded)
    own = AutoSkip(model, 12)
    made = own.choose(model, [list(range(1, 40))], synced=True)
    replies = iter(list(sums))

    def answered(total: torch.Tensor) -> None:
        assert set(total.tolist()) == {0}, "nothing to add"
        total.copy_(torch.tensor(next(replies)))

    monkeypatch.setattr(auto_skip.dist, "all_reduce", answered)
    other = AutoSkip(model, 12)
    assert other.choose(model, [], synced=True) == made == MOST_FORWARDS
    assert own.drafts
    assert (own.skip.attention, own.skip.mlp) == (other.skip.attention, other.skip.mlp)
    assert next(replies, None) is None


def test_two_ranks_with_sharded_weights_choose_alike(tmp_path: Path) -> None:
    module = "tests.inference.drafting.auto_skip_ranks"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(tmp_path), str(rank)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=TIME_LIMIT)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["skip"] == second["skip"] != NOTHING
    right = Autoregressive().generate(copying(), [list(range(1, 30))], max_new_tokens=8).tokens
    assert first["texts"][1] == right


def test_a_part_with_a_replaced_forward_keeps_it() -> None:
    model = copying()
    ids = prompts(model, [50])["input_ids"]
    with skipped_sublayers(model, [1], []):
        right = Autoregressive().generate(model, ids, max_new_tokens=8).tokens
        assert SelfSpeculative().generate(model, ids, max_new_tokens=8).tokens == right
        assert "forward" in vars(model.model.layers[1].self_attn)
    assert "forward" not in vars(model.model.layers[1].self_attn)
