"""Estimate the speed of a skip set from one parallel pass of the draft and the costs of forwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from saccade.inference.drafting.control import choices
from saccade.inference.huggingface.models import device_of
from saccade.inference.huggingface.sublayer_skip import skipped_sublayers


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
class DraftRounds:
    """Rounds of drafting and verification, counted.

    Args:
        rounds: How many.
        drafted: Drafted tokens of all of them.
        tokens: Emitted tokens of all of them: the accepted ones, and one of the full model in each.
    """

    rounds: int
    drafted: int
    tokens: int


@dataclass(frozen=True)
class ForwardCosts:
    """Costs of a model's forwards after a prefix, for a batch of one text: seconds, or any other unit.

    Args:
        attention: Of one attention sub-layer with its norm, for one token.
        mlp: Of one MLP sub-layer with its norm, for one token.
        rest: Of everything that is never skipped, for one token.
        layers: Number of decoder layers.
        width: Number of tokens of the widest verification.
        wide: Of a full forward of ``width`` tokens.
    """

    attention: float
    mlp: float
    rest: float
    layers: int
    width: int
    wide: float

    @property
    def full(self) -> float:
        """Cost of a full forward of one token, which is that of a token in autoregressive decoding."""
        return self.draft(SkipSet())

    def draft(self, skip: SkipSet) -> float:
        """Return the cost of a forward of one token with a skip set."""
        kept = self.attention * (self.layers - len(skip.attention)) + self.mlp * (self.layers - len(skip.mlp))
        return self.rest + kept

    def verify(self, tokens: int) -> float:
        """Return the cost of a full forward of ``tokens`` tokens, interpolated between 1 and ``width`` tokens."""
        if self.width <= 1:
            return self.full
        return self.full + (self.wide - self.full) * (tokens - 1) / (self.width - 1)

    def of(self, rounds: DraftRounds, skip: SkipSet) -> float:
        """Return the cost of rounds: of their drafts, and of verifications that are one token wider than these."""
        drafts = rounds.drafted * (self.draft(skip) + self.verify(2) - self.full)
        return drafts + rounds.rounds * self.full

    def speedup(self, rounds: DraftRounds, skip: SkipSet) -> float:
        """Return the speed of rounds over one token at a time, ``E / (K c + v)`` with their own numbers."""
        return rounds.tokens * self.full / self.of(rounds, skip)

    def highest_speedup(self, skip: SkipSet) -> float:
        """Return the speed-up if every draft were accepted, with the best number of drafted tokens for that.

        No draft of this skip set can gain more on texts of any kind.
        """
        whole = (DraftRounds(1, length, length + 1) for length in range(1, self.width))
        return max((self.speedup(rounds, skip) for rounds in whole), default=1.0)

    def to_dict(self) -> dict[str, float]:
        """Return the fields as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class DraftTrace:
    """Predictions of a draft at places of texts where the choices of the full model are known.

    Args:
        matches: For each text, ``[places]`` booleans: whether the draft's best token is that of the full model.
    """

    matches: list[np.ndarray]

    @property
    def match_rate(self) -> float:
        """Share of the full model's tokens that the draft predicts correctly."""
        return float(np.concatenate(self.matches).mean())

    def rounds(self, draft_length: int) -> DraftRounds:
        """Simulate drafting and verification along the texts.

        Args:
            draft_length: Number of draft tokens in a round.

        Returns:
            The rounds. One at the end of a text drafts only the tokens that are left.
        """
        tokens = rounds = drafted_sum = 0
        for matched in self.matches:
            place = 1  # the first token comes from the prefill
            while place < len(matched):
                drafted, accepted = min(draft_length, len(matched) - place - 1), 0
                while accepted < drafted and matched[place + accepted]:
                    accepted += 1
                place += accepted + 1
                tokens += accepted + 1
                rounds += 1
                drafted_sum += drafted
        return DraftRounds(rounds, drafted_sum, tokens)


def model_choices(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the best token of the full model after each token of a text but the last.

    Args:
        model: The model, in evaluation mode.
        ids: ``[length]`` token ids.

    Returns:
        ``[length - 1]`` token ids, on the CPU.
    """
    with torch.no_grad():
        logits = model(input_ids=ids[None].to(device_of(model)), use_cache=False).logits
    best: Tensor = logits[0, :-1].argmax(-1).cpu()
    return best


def draft_trace(model: nn.Module, texts: Sequence[tuple[Tensor, Tensor]], skip: SkipSet) -> DraftTrace:
    """Run the draft once over texts, all positions in parallel, as SWIFT (arXiv 2410.06916) scores its skip sets.

    Here the draft reads its own keys and values. In decoding, it reads the full model's for the committed text, so this
    underestimates the match rate.

    Args:
        model: The model, in evaluation mode.
        texts: Pairs of token ids ``[length]`` and what the full model chooses at the last places, ``[places]``. For a
            text that it has generated itself these are the last tokens of the text.
        skip: The skip set.

    Returns:
        The matches of each text.
    """
    device = device_of(model)
    matches: list[np.ndarray] = [np.empty(0)] * len(texts)
    with torch.no_grad(), skipped_sublayers(model, skip.attention, skip.mlp):
        for (_, places), members in _same_shape(texts):
            ids = torch.stack([texts[index][0] for index in members]).to(device)
            out = model(input_ids=ids, use_cache=False, logits_to_keep=places + 1).logits[:, :-1]
            wanted = torch.stack([texts[index][1] for index in members]).to(device)
            said = (out.argmax(-1) == wanted).cpu().numpy()
            for row, index in enumerate(members):
                matches[index] = said[row]
    return DraftTrace(matches)


def _same_shape(texts: Sequence[tuple[Tensor, Tensor]]) -> Iterable[tuple[tuple[int, int], list[int]]]:
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (ids, places) in enumerate(texts):
        shapes.setdefault((len(ids), len(places)), []).append(index)
    return shapes.items()


@dataclass(frozen=True)
class SkipScore:
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


def score(trace: DraftTrace, costs: ForwardCosts, skip: SkipSet, draft_length: int) -> SkipScore:
    """Simulate drafting and verification on the traces and add up the costs of the forwards.

    This estimates the same as ``E / (K c + 1)`` of the method without assuming that tokens are accepted independently:
    the traces tell which tokens match, and a wider verification costs more. The number of drafted tokens is the best
    one of those between which draft control chooses.

    Args:
        trace: Trace of the skip set.
        costs: Costs of the model's forwards, in seconds.
        skip: The skip set.
        draft_length: Largest number of draft tokens in a round.

    Returns:
        The estimate.

    Raises:
        ValueError: No text has two generated tokens, so that nothing could be drafted.
    """
    by_length = [trace.rounds(length) for length in choices(draft_length)[1:]]
    found = min(by_length, key=lambda rounds: costs.of(rounds, skip) / max(1, rounds.tokens))
    if found.tokens == 0:
        raise ValueError(
            "no text has two generated tokens: raise max_new_tokens, or give prompts that the model continues."
        )
    return SkipScore(
        costs.of(found, skip) / found.tokens,
        trace.match_rate,
        found.tokens / found.rounds,
        found.drafted / found.rounds,
    )
