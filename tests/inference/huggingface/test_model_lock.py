"""Threads on one model write right texts and leave it as it was; models that share nothing do not wait."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from saccade.inference import AssistedDecoding, Autoregressive, LVSpec, SelfSpeculative, SpecVLM
from saccade.inference.huggingface import model_lock
from saccade.inference.huggingface.model_lock import ModelLock
from saccade.inference.verification.relaxed import Strict
from tests.inference.doors.test_clean import portrait, same
from tests.support.models import tiny_model
from tests.support.video_checks import asked, video_model
from tests.support.video_models import video_prompts

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def together(*works: Callable[[], Any], times: int = 4) -> list[list[Any]]:
    """What every work returns, each time, with one thread for each."""
    found: list[list[Any]] = [[] for _ in works]
    errors: list[BaseException] = []
    begin = threading.Barrier(len(works))

    def run(index: int) -> None:
        try:
            begin.wait()
            for _ in range(times):
                found[index].append(works[index]())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return found


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config).double()


@pytest.mark.parametrize("make", [gpt2, lambda: tiny_model("qwen3").train()], ids=["gpt2 training", "qwen3 training"])
def test_threads_on_a_model_in_training_mode(make: Callable[[], PreTrainedModel]) -> None:
    """Its dropout is off in both threads' forwards, and on again afterwards."""
    model = make().train()
    right = Autoregressive().generate(model, IDS, max_new_tokens=24).tokens
    before = portrait(model)
    work = lambda: Autoregressive().generate(model, IDS, max_new_tokens=24).tokens  # noqa: E731
    assert together(work, work) == [[right] * 4] * 2
    assert same(before, portrait(model))


def test_threads_that_skip_different_layers() -> None:
    model = tiny_model(residual=0.3)
    right = Autoregressive().generate(model, IDS, max_new_tokens=24).tokens
    before = portrait(model)
    works = [
        lambda skip=skip: SelfSpeculative(skip=skip, gamma=0.0).generate(model, IDS, max_new_tokens=24).tokens
        for skip in ({"attention": [1]}, {"attention": [0, 1], "mlp": [1]})
    ]
    assert together(*works) == [[right] * 4] * 2
    assert same(before, portrait(model))


def test_a_draft_that_shares_its_configuration_with_the_target() -> None:
    model = tiny_model()
    draft = type(model)(model.config).double().eval()
    right = [Autoregressive().generate(each, IDS, max_new_tokens=24).tokens for each in (model, draft)]
    before = portrait(model), portrait(draft)
    found = together(
        lambda: AssistedDecoding(draft).generate(model, IDS, max_new_tokens=24).tokens,
        lambda: Autoregressive().generate(draft, IDS, max_new_tokens=24).tokens,
    )
    assert found == [[right[0]] * 4, [right[1]] * 4]
    assert same(before[0], portrait(model))
    assert same(before[1], portrait(draft))


def test_threads_that_read_videos_and_watch_a_layer() -> None:
    model, given = video_model("qwen2_5_vl"), asked(video_prompts("qwen2_5_vl", seed=1))
    right = Autoregressive().generate(model, **given, max_new_tokens=10).tokens
    before = portrait(model)
    found = together(
        lambda: LVSpec(rule=Strict(), draft_length=3).generate(model, **given, max_new_tokens=10).tokens,
        lambda: SpecVLM(prune_ratio=0.5).generate(model, **given, max_new_tokens=10).tokens,
        times=2,
    )
    assert found == [[right] * 2] * 2
    assert same(before, portrait(model))


def free(lock: ModelLock) -> bool:
    """Whether another thread gets a lock at once."""
    got: list[bool] = []

    def try_it() -> None:
        taken = [each for each in lock._locks if each.acquire(blocking=False)]
        got.append(len(taken) == len(lock._locks))
        for each in taken:
            each.release()

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    return got[0]


def test_who_waits_for_whom() -> None:
    model, other = tiny_model(), tiny_model(seed=1)
    configured = type(model)(model.config)
    hull = torch.nn.Sequential(torch.nn.Linear(2, 2), other)
    with ModelLock(model).held():
        assert free(ModelLock(other))
        assert not free(ModelLock(model))
        assert not free(ModelLock(configured))  # its configuration is the model's
        assert not free(ModelLock(model.model.layers[1].mlp))
        with ModelLock(model).held():  # the thread that holds it may take it again
            pass
        assert not free(ModelLock(model))
        assert free(ModelLock(hull))
    with ModelLock(hull).held():
        assert not free(ModelLock(other))
        assert free(ModelLock(model))
    assert free(ModelLock(model))


def test_a_lock_is_given_back_after_an_error() -> None:
    model = tiny_model()
    with pytest.raises(KeyError), ModelLock(model).held():
        raise KeyError
    assert free(ModelLock(model))


def test_locks_keep_no_model_alive() -> None:
    gc.collect()
    before = len(model_lock._LOCKS)
    model = tiny_model()
    lock, gone = ModelLock(model), weakref.ref(model)
    assert len(model_lock._LOCKS) > before
    Autoregressive().generate(model, IDS, max_new_tokens=3)
    del model
    gc.collect()
    assert gone() is None
    assert len(model_lock._LOCKS) == before
    assert free(lock)
