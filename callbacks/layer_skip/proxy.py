"""Estimate the speed of a skip set from one parallel pass and a few timed forwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from saccade.common.timing import median_seconds
from saccade.inference import Session
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, decoder_layers, skipped_sublayers


@dataclass(frozen=True)
class SkipSet:
    """Sub-layers that a draft skips.

    Args:
        attention: Layers whose attention is skipped, counted from 0.
        mlp: Layers whose MLP is skipped.
    """

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    @classmethod
    def from_bits(cls, bits: Sequence[int]) -> SkipSet:
        """Make a skip set from ``2 * layers`` switches, those of the attention first; 1 means skipped."""
        layers = len(bits) // 2
        return cls(
            tuple(layer for layer in range(layers) if bits[layer]),
            tuple(layer for layer in range(layers) if bits[layers + layer]),
        )

    def bits(self, layers: int) -> tuple[int, ...]:
        """Return the switches for a model with this number of layers."""
        attention = [int(layer in self.attention) for layer in range(layers)]
        return tuple(attention + [int(layer in self.mlp) for layer in range(layers)])

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)


@dataclass(frozen=True)
class ForwardCosts:
    """Seconds of a model's forwards after a prefix, for a batch of one text.

    Args:
        attention: Seconds of one attention sub-layer with its norm, for one token.
        mlp: Seconds of one MLP sub-layer with its norm, for one token.
        rest: Seconds of everything that is never skipped, for one token.
        layers: Number of decoder layers.
        width: Number of tokens of the widest verification.
        wide: Seconds of a full forward of ``width`` tokens.
    """

    attention: float
    mlp: float
    rest: float
    layers: int
    width: int
    wide: float

    @property
    def full(self) -> float:
        """Seconds of a full forward of one token, the cost of a token in autoregressive decoding."""
        return self.draft(SkipSet())

    def draft(self, skip: SkipSet) -> float:
        """Return the seconds of a forward of one token with a skip set."""
        kept = self.attention * (self.layers - len(skip.attention)) + self.mlp * (self.layers - len(skip.mlp))
        return self.rest + kept

    def verify(self, tokens: int) -> float:
        """Return the seconds of a full forward of ``tokens`` tokens, interpolated between 1 and ``width`` tokens."""
        if self.width <= 1:
            return self.full
        return self.full + (self.wide - self.full) * (tokens - 1) / (self.width - 1)

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dictionary."""
        return asdict(self)


def measure_costs(model: nn.Module, prompt: Sequence[int], draft_length: int, repeats: int = 15) -> ForwardCosts:
    """Time a model's forwards: complete, without attention and without MLPs.

    The layers of a decoder have the same shapes, so the mean over layers is the cost of each. It is computed from the
    difference of whole forwards, because timers around single sub-layers would make the device wait.

    Args:
        model: The model, in evaluation mode.
        prompt: Tokens of the prefix.
        draft_length: Largest number of draft tokens in a round; a verification is one token wider.
        repeats: Number of timed calls of each kind; the median is used.

    Returns:
        The costs in seconds.
    """
    layers = len(decoder_layers(model))
    everything = range(layers)

    def timed(skip: SkipSet, tokens: int) -> float:
        switch = SublayerSkip(model, skip.attention, skip.mlp)
        with Session(model, len(prompt) + tokens, skip=switch) as session:
            session.prefill([list(prompt)])
            ids = torch.full((1, tokens), int(prompt[-1]), device=session.device)
            return median_seconds(lambda: session.forward(ids, skipped=len(skip) > 0), repeats, session.device)

    full = timed(SkipSet(), 1)
    no_attention = timed(SkipSet(tuple(everything), ()), 1)
    no_mlp = timed(SkipSet((), tuple(everything)), 1)
    attention = max(full - no_attention, 0.0) / layers
    mlp = max(full - no_mlp, 0.0) / layers
    rest = max(full - layers * (attention + mlp), 0.0)
    return ForwardCosts(attention, mlp, rest, layers, draft_length + 1, timed(SkipSet(), draft_length + 1))


@dataclass(frozen=True)
class DraftTrace:
    """Predictions of a draft at every position of texts that the full model generated.

    Args:
        matches: For each text, ``[new tokens]`` booleans: whether the draft's best token is that of the text.
        confidences: For each text, ``[new tokens]`` probabilities of the draft's best token.
    """

    matches: list[np.ndarray]
    confidences: list[np.ndarray]

    @property
    def match_rate(self) -> float:
        """Share of the tokens that the draft predicts correctly."""
        return float(np.concatenate(self.matches).mean())


def draft_trace(model: nn.Module, texts: Sequence[tuple[Tensor, int]], skip: SkipSet) -> DraftTrace:
    """Run the draft once over texts, all positions in parallel, as SWIFT (arXiv 2410.06916) scores its skip sets.

    Here the draft reads its own keys and values. In decoding, it reads the full model's for the committed text, so this
    underestimates the match rate.

    Args:
        model: The model, in evaluation mode.
        texts: Pairs of token ids ``[length]`` and the number of tokens at the end that the model generated.
        skip: The skip set.

    Returns:
        Matches and confidences of each text.
    """
    device = next(model.parameters()).device
    matches: list[np.ndarray] = [np.empty(0)] * len(texts)
    confidences: list[np.ndarray] = [np.empty(0)] * len(texts)
    with torch.inference_mode(), skipped_sublayers(model, skip.attention, skip.mlp):
        for (_, new), members in _same_shape(texts):
            ids = torch.stack([texts[index][0] for index in members]).to(device)
            out = model(input_ids=ids, use_cache=False, logits_to_keep=new + 1).logits[:, :-1]
            probability, best = out.float().softmax(-1).max(-1)
            said = (best == ids[:, -new:]).cpu().numpy()
            for row, index in enumerate(members):
                matches[index], confidences[index] = said[row], probability[row].cpu().numpy()
    return DraftTrace(matches, confidences)


def _same_shape(texts: Sequence[tuple[Tensor, int]]) -> Iterable[tuple[tuple[int, int], list[int]]]:
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (ids, new) in enumerate(texts):
        shapes.setdefault((len(ids), new), []).append(index)
    return shapes.items()


@dataclass(frozen=True)
class ProxyScore:
    """The estimate for a skip set.

    Args:
        seconds_per_token: Estimated time for each emitted token.
        match_rate: Share of the tokens that the draft predicts correctly.
        tokens_per_round: Estimated number of tokens in a round, including the bonus or recovered token.
        drafted_per_round: Estimated number of draft tokens in a round.
    """

    seconds_per_token: float
    match_rate: float
    tokens_per_round: float
    drafted_per_round: float


def score(trace: DraftTrace, costs: ForwardCosts, skip: SkipSet, draft_length: int, gamma: float) -> ProxyScore:
    """Simulate drafting and verification on the traces and add up the costs of the forwards.

    This estimates the same as ``E / (K c + 1)`` of the method without assuming that tokens are accepted independently:
    the traces tell which tokens match, drafting stops after a token below the threshold, and a wider verification costs
    more.

    Args:
        trace: Trace of the skip set.
        costs: Costs of the model's forwards.
        skip: The skip set.
        draft_length: Largest number of draft tokens in a round.
        gamma: Confidence below which drafting stops.

    Returns:
        The estimate. A round at the end of a text drafts only the tokens that are left.

    Raises:
        ValueError: No text has two generated tokens, so that nothing could be drafted.
    """
    draft = costs.draft(skip)
    seconds, tokens, rounds, drafted_sum = 0.0, 0, 0, 0
    for matched, confident in zip(trace.matches, trace.confidences, strict=True):
        place = 1  # the first token comes from the prefill
        while place < len(matched):
            drafted = 0
            while drafted < min(draft_length, len(matched) - place - 1):
                drafted += 1
                if confident[place + drafted - 1] < gamma:
                    break
            accepted = 0
            while accepted < drafted and matched[place + accepted]:
                accepted += 1
            place += accepted + 1
            seconds += drafted * draft + costs.verify(drafted + 1)
            tokens += accepted + 1
            rounds += 1
            drafted_sum += drafted
    if tokens == 0:
        raise ValueError(
            "no text has two generated tokens: raise max_new_tokens, or give prompts that the model continues."
        )
    return ProxyScore(seconds / tokens, trace.match_rate, tokens / rounds, drafted_sum / rounds)
