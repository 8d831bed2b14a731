"""A check before the first use of a model: does a session compute what the model's own forward computes?"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.model_lock import ModelLock, evaluation_mode
from saccade.inference.huggingface.models import (
    attention_spans,
    base_model,
    context_length,
    device_of,
    is_sharded,
    precision_of,
    text_config,
)
from saccade.inference.huggingface.vision import kept_position_counter, special_token_ids, visual_arguments
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.request import Request

TESTED = frozenset(
    {
        "Cohere2ForCausalLM",
        "Exaone4ForCausalLM",
        "GPT2LMHeadModel",
        "GPTNeoXForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "GemmaForCausalLM",
        "Glm4ForCausalLM",
        "GptOssForCausalLM",
        "Lfm2ForCausalLM",
        "LlamaForCausalLM",
        "LlavaOnevisionForConditionalGeneration",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3VLForConditionalGeneration",
        "Qwen3NextForCausalLM",
        "Starcoder2ForCausalLM",
    }
)
"""Classes of transformers whose texts the tests compare with those of ``model.generate``: not checked here."""

_TOKENS = 8  # read by the check: a prompt of 6 and two steps
_LONGEST_WINDOW = 512  # windows up to here are checked with a text that is longer than they are
_CHECKED: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_GUARD = threading.RLock()


def check_model(model: nn.Module, request: Request, config: EngineConfig, synced: bool = False) -> None:
    """Refuses a model of an untested class whose logits a session does not reproduce.

    A model object is checked once with a few tokens (more than its window, where that is short), and once more with its
    first images or videos. Nothing is checked where ``config.check_model`` is off, for classes in :data:`TESTED`, and
    where weights are spread over ranks, whose forwards must be the same on all of them.

    Args:
        model: The target.
        request: What is about to be generated.
        config: Of the engine.
        synced: Whether ranks agree on every forward.

    Raises:
        ValueError: The logits differ by more than rounding; the message says by how much.
    """
    if not config.check_model or synced or is_sharded(model) or _is_tested(model):
        return
    for kind in ("text", "visual") if request.visual else ("text",):
        with _GUARD:
            done = kind in _CHECKED.get(model, set())
        if done:
            continue
        try:
            if kind == "text":
                _check_text(model)
            else:
                _check_visual(model, request)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
            raise ValueError(
                f"{type(model).__name__} cannot be decoded ({type(error).__name__}: {reason}): decode it with "
                "model.generate."
            ) from error
        with _GUARD:
            _CHECKED.setdefault(model, set()).add(kind)


def _is_tested(model: nn.Module) -> bool:
    inner: Any = base_model(model)
    adapters = getattr(model, "peft_config", None) or {}
    if any(getattr(getattr(item, "peft_type", None), "value", "") != "LORA" for item in adapters.values()):
        return False
    own = type(inner).__module__.startswith("transformers.models.") and type(inner).__name__ in TESTED
    return own and not any("forward" in vars(part) for part in model.modules())


def _check_text(model: nn.Module) -> None:
    """Compares logits of a prompt, of a step behind it, and of one behind a draft that is rejected."""
    vocabulary = text_config(model).vocab_size
    special = special_token_ids(model)
    usual = [token for token in range(min(vocabulary, 4096)) if token not in special] or [0]
    count = _text_length(model)
    step = max(1, len(usual) // _TOKENS)
    # words of the vocabulary far apart, and others at the next turn
    tokens = [usual[(index * step + 1 + index // _TOKENS) % len(usual)] for index in range(count)]
    own = _own_logits(model, tokens)[-3:]
    # what the model itself computes for the same place in a shorter text: causal models differ by rounding alone
    shorter = _own_logits(model, tokens[:-1])[-1]
    with _session(model, count) as session:
        first = session.prefill([tokens[:-2]])[0]
        # the second token is none of the text: nothing of it may be left at the next step
        second = session.forward(torch.tensor([[tokens[-2], tokens[-2]]], device=session.device))[0, 0]
        session.commit([[0]])
        third = session.forward(torch.tensor([tokens[-1:]], device=session.device))[0, 0]
    noise = _difference(shorter, own[1])
    places = ["prompt", "step behind a prompt", "step behind a rejected draft"]
    _compare(model, list(zip(own, (first, second, third), places, strict=True)), noise)


def _text_length(model: nn.Module) -> int:
    spans = [size for size in attention_spans(model) if size <= _LONGEST_WINDOW]
    return min(max([0, *spans]) + _TOKENS, context_length(model) or _LONGEST_WINDOW)


def _check_visual(model: nn.Module, request: Request) -> None:
    """Compares logits of the request's own prompts, images and videos included, and of one step behind them."""
    prompts = request.prompts
    extended = [[*prompt, prompt[-1]] for prompt in prompts]
    longest = max(len(prompt) for prompt in extended)
    device = device_of(model)
    rows = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in extended], device=device)
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in extended], device=device)
    visual = {name: value for name, value in request.visual.items() if name != "position_ids"}
    own = _own_forward(model, input_ids=rows, attention_mask=mask, **visual_arguments(model, rows, visual))
    with _session(model, longest) as session:
        first = session.prefill(prompts, read_visual_prompts(model, prompts, request.visual))
        last = torch.tensor([prompt[-1:] for prompt in extended], device=session.device)
        second = session.forward(last)[:, 0]
    pairs = []
    for row, prompt in enumerate(prompts):
        pairs.append((own[row, len(prompt) - 1], first[row], "prompt with images or videos"))
        pairs.append((own[row, len(prompt)], second[row], "step behind a prompt with images or videos"))
    _compare(model, pairs, 0.0)


def _session(model: nn.Module, capacity: int) -> Session:
    return Session(model, capacity, pool=EnginePool(EngineConfig("eager")))


def _own_logits(model: nn.Module, tokens: list[int]) -> Tensor:
    """``[tokens, vocabulary]`` of the model's own forward."""
    return _own_forward(model, input_ids=torch.tensor([tokens], device=device_of(model)))[0]


def _own_forward(model: Any, **inputs: Any) -> Tensor:
    lock = ModelLock(model)
    with lock.held(), evaluation_mode(model.modules()), kept_position_counter(model), torch.inference_mode():
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


def _difference(ours: Tensor, own: Tensor) -> float:
    """Root mean square of the difference, in units of the standard deviation of the model's own logits."""
    own, ours = own.double().cpu(), ours.double().cpu()
    if bool(own.isnan().any()) and bool(ours.isnan().any()):
        return 0.0  # verification says what is wrong with such weights
    shared = own.isfinite() & ours.isfinite()
    if bool((own.isfinite() != ours.isfinite()).any()) or not bool(shared.any()):
        return float("inf")
    spread = own[shared].std(correction=0).clamp(min=1e-12)
    return float((own - ours)[shared].square().mean().sqrt() / spread)


def _compare(model: nn.Module, pairs: list[tuple[Tensor, Tensor, str]], noise: float) -> None:
    name = type(model).__name__
    # logits are computed in the precision of the weights, whatever theirs is, and errors add up over the layers
    rounding = max(1e-3, 16 * torch.finfo(precision_of(model)).eps)
    if noise > 2 * rounding:
        raise ValueError(
            f"the logits of {name} change with tokens that come later (by {noise:.2g} standard deviations), so no "
            "cached decoder can follow it: decode this model with model.generate."
        )
    allowed = max(rounding, 3 * noise)
    for own, ours, where in pairs:
        found = _difference(ours, own)
        if not found <= allowed:
            raise ValueError(
                f"{name} is not decoded exactly: for a {where}, Saccade's logits differ from those of its own forward "
                f"by {found:.2g} of their standard deviation, where rounding explains {allowed:.2g}: decode it with "
                "model.generate (engine.check_model=false switches this check off)."
            )
