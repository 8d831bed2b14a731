"""Choose the sub-layers that a draft skips on the first prompts of a model, or none (ours)."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from saccade.inference.drafting.control import choices
from saccade.inference.drafting.skip_scores import DraftRounds, ForwardCosts, SkipSet, draft_trace, model_choices
from saccade.inference.drafting.skip_sets import SPREAD_SHARES, spread_skip_set
from saccade.inference.huggingface.model_lock import ModelLock, evaluation_mode
from saccade.inference.huggingface.models import base_model, device_of
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, decoder_layers, sublayers
from saccade.inference.huggingface.vision import kept_position_counter, visual_token_ids

LEAST_PLACES, MOST_PLACES = 32, 128
"""Places of prompts at which a draft is compared with the full model: the fewest for a choice, and the most."""
MOST_FORWARDS = 1 + len(SPREAD_SHARES)
"""Forwards of a choice: one of the full model, and one of each set."""
_WIDE = 1.25
"""Cost of a full forward of as many tokens as a round verifies, over that of one; 1.1 to 1.4 were measured."""
_LEAST_SPEEDUP = 1.05
"""Below this estimate nothing is skipped: its gain would be within the error of the estimate."""


class AutoSkip:
    """The sub-layers that a decoder with ``skip="auto"`` skips for one model, chosen on the first prompts it reads.

    Candidates are evenly spread over the layers and have 15, 30, 45 and 60 % of the sub-layers. Each reads up to 128
    tokens of the prompts once, all places in parallel, and so does the full model: at how many places, and where, is
    the best token the same? Rounds of drafting are simulated on this, with the weights of what a forward runs as its
    cost, so that the choice does not depend on a clock. The best candidate is taken if it promises a gain. So a choice
    takes at most five forwards of 128 tokens, and two for most models that were not trained to skip layers: a larger
    set is not tried when it could not gain even if it drafted as well as the smaller one.

    Args:
        model: A Llama-, Qwen2- or Qwen3-shaped causal language model.
        draft_length: Maximum number of drafted tokens in a round.

    Attributes:
        skip: What is skipped; empty before the choice, and after it if no set pays. Sessions may be opened with it
            before the choice.
        decided: Whether the choice has been made.
    """

    def __init__(self, model: nn.Module, draft_length: int) -> None:
        self.skip = SublayerSkip(model, (), ())
        self.decided = False
        self._draft_length = draft_length
        self._text: list[int] = []
        self._choosing = threading.Lock()

    @property
    def drafts(self) -> bool:
        """Whether sub-layers have been chosen."""
        return self.decided and bool(self.skip.attention or self.skip.mlp)

    def choose(self, model: nn.Module, prompts: Sequence[Sequence[int]], *, synced: bool = False) -> int:
        """Chooses, unless that has been done, or the prompts so far are shorter than 33 tokens together.

        Args:
            model: The model.
            prompts: Token ids of every row. Of prompts with images or videos the text behind these is read.
            synced: Choose together with the other ranks, which all make this call, from all their prompts.

        Returns:
            The number of forwards.
        """
        with self._choosing:
            if self.decided:
                return 0
            visual = visual_token_ids(model)
            for prompt in prompts:
                begin = next((at for at in range(len(prompt), 0, -1) if prompt[at - 1] in visual), 0)
                self._text += prompt[begin:][-MOST_PLACES - 1 :]
            self._text = self._text[: MOST_PLACES + 1]
            places = max(len(self._text) - 1, 0)
            if _summed([places], model, synced)[0] < LEAST_PLACES:
                return 0
            # sharded weights need all ranks in every forward: one without a text reads something that does not count
            text = torch.tensor(self._text if places else [0, 0])
            with _undisturbed(model):
                chosen, agreement, forwards = self._best(model, text, places, synced)
            self.skip.fill(chosen.attention, chosen.mlp)
            self.decided, self._text = True, []
            if not chosen:
                _say_what_to_do(model, agreement)
            return forwards

    def _best(self, model: nn.Module, text: Tensor, places: int, synced: bool) -> tuple[SkipSet, float | None, int]:
        """The best set, or none; the agreement of the smallest set with the full model; the forwards made."""
        layers = len(decoder_layers(model))
        spreads = [spread_skip_set(layers, share) for share in SPREAD_SHARES]
        sets = dict.fromkeys(SkipSet(tuple(spread["attention"]), tuple(spread["mlp"])) for spread in spreads)
        candidates = [skip for skip in sets if skip]
        costs = counted_costs(model, self._draft_length)
        best, highest, agreement, forwards = SkipSet(), _LEAST_SPEEDUP, None, 0
        if not candidates:
            return best, agreement, forwards
        wanted = model_choices(model, text)
        forwards += 1
        for skip in candidates:
            trace = draft_trace(model, [(text, wanted)], skip)
            forwards += 1
            lengths = choices(self._draft_length)[1:]
            counts = [trace.rounds(length) for length in lengths]
            flat = [number for item in counts for number in (item.rounds, item.drafted, item.tokens)]
            right = int(trace.matches[0].sum())
            seen, matched, *flat = _summed([places, right, *flat] if places else [0] * (len(flat) + 2), model, synced)
            rounds = [DraftRounds(*flat[at : at + 3]) for at in range(0, len(flat), 3)]
            agreement = matched / seen if agreement is None else agreement
            gain = max(costs.speedup(item, skip) for item in rounds)
            if gain >= highest:
                best, highest = skip, gain
            if max(costs.speedup(item, candidates[-1]) for item in rounds) < highest:
                break  # the larger sets cost no less than the last one, and agree no more often than this one
        return best, agreement, forwards


def counted_costs(model: nn.Module, draft_length: int) -> ForwardCosts:
    """The costs of a model's forwards in bytes of weights that they read, as where memory is the limit (batch 1).

    Args:
        model: The model.
        draft_length: Largest number of draft tokens in a round.
    """
    layers = decoder_layers(model)
    head = base_model(model).get_output_embeddings()
    attention, mlp = (sum(_bytes(sublayers(layer)[kind]) for layer in layers) / len(layers) for kind in (0, 1))
    norms = sum(_bytes(layer) for layer in layers) / len(layers) - attention - mlp
    attention, mlp = attention + norms / 2, mlp + norms / 2
    rest = 0 if head is None else _bytes(head)
    full = rest + len(layers) * (attention + mlp)
    return ForwardCosts(attention, mlp, rest, len(layers), draft_length + 1, _WIDE * full)


def _bytes(module: nn.Module) -> int:
    """Bytes of a module's weights, also where only a part of them is on this rank."""
    return sum(getattr(weight, "ds_numel", weight.numel()) * weight.element_size() for weight in module.parameters())


def _summed(numbers: list[int], model: nn.Module, synced: bool) -> list[int]:
    """The numbers of all ranks, added, so that all ranks choose alike."""
    if not synced:
        return numbers
    total = torch.tensor(numbers, dtype=torch.int64, device=device_of(model))
    dist.all_reduce(total)
    found: list[int] = total.tolist()
    return found


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Runs the model's own forwards as a session does: alone, in evaluation mode, leaving nothing behind."""
    with ModelLock(model).held(), evaluation_mode(model.modules()), kept_position_counter(model):
        yield


def _say_what_to_do(model: nn.Module, agreement: float | None) -> None:
    name = type(base_model(model)).__name__
    reason = (
        "it has too few layers to skip some"
        if agreement is None
        else f"with {SPREAD_SHARES[0]:.0%} of its sub-layers skipped it chooses the same token at only {agreement:.0%}"
        " of the places of the prompt"
    )
    warnings.warn(
        f"saccade: SelfSpeculative(skip='auto') drafts nothing with this {name}: {reason}. Train it with sub-layer"
        " dropout, search its sub-layers with `saccade search-layers`, or use another decoder.",
        stacklevel=2,
    )
