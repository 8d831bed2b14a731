"""Sampled output has the target's distribution; the same test finds the bugs that are easy to make."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    TokenTree,
    sampling,
)
from saccade.inference.noise import gumbel_noise
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.rejection_sampling import verify_sampling
from saccade.inference.verification.verifier import StrictVerifier
from tests.inference.sampling_law import VOCABULARY, deviation, law, measured
from tests.support.decoders import HALF
from tests.support.models import tiny_model
from tests.support.verifiers import GreedyBonus, judged_by

PLAIN = Sampling()
WARPED = Sampling(temperature=0.7, top_k=2, top_p=0.8)
REJECTING = Sampling(coupling="rejection")


@cache
def toy(seed: int = 0, sharpness: float = 1.0) -> PreTrainedModel:
    return tiny_model(layers=3, vocabulary=VOCABULARY, hidden=8, seed=seed, sharpness=sharpness)


@pytest.mark.parametrize("settings", [PLAIN, WARPED], ids=["plain", "warped"])
def test_the_law_of_shared_noise(settings: Sampling) -> None:
    """Every other decoder writes the same text, see test_coupling."""
    assert (law(toy(), WARPED) == 0).sum() > 100  # the warpers forbid something
    assert abs(measured(Autoregressive(), settings, toy())) < 4


def test_noise_that_does_not_depend_on_the_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def repeated(keys: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
        return gumbel_noise(keys, torch.zeros_like(positions), vocabulary)

    monkeypatch.setattr(sampling, "gumbel_noise", repeated)
    assert measured(Autoregressive(), PLAIN, toy()) > 4


REJECTION: dict[str, tuple[Decoder, Sampling]] = {
    "without drafts": (Autoregressive(), PLAIN),
    "picked drafts": (PromptLookup(), WARPED),
    "drawn drafts": (AssistedDecoding(toy(1), draft_length=4, confidence_threshold=0.0), PLAIN),
    "drafts of different lengths": (SelfSpeculative(HALF, gamma=0.2, beta2=0.5), WARPED),
}


@pytest.mark.parametrize("drafts", REJECTION)
def test_the_law_of_rejection_sampling(drafts: str) -> None:
    decoder, settings = REJECTION[drafts]
    assert abs(measured(decoder, replace(settings, coupling="rejection"), toy())) < 4


def test_committing_the_targets_argmax_is_found() -> None:
    decoder = judged_by(GreedyBonus, AssistedDecoding)(toy(1), draft_length=3, confidence_threshold=0.0)
    assert measured(decoder, REJECTING, toy()) > 4


def test_a_softmax_row_for_an_argmax_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # the draft picks its favourite, but says that it was drawn from the softmax
    def favourite(self: Sampling, logits: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.probabilities(logits), logits.argmax(-1, keepdim=True)

    monkeypatch.setattr(Sampling, "proposals", favourite)
    assert measured(AssistedDecoding(toy(1), draft_length=3, confidence_threshold=0.0), REJECTING, toy()) > 4


def test_a_biased_acceptance_is_found() -> None:
    class Eager(StrictVerifier):
        def verify(self, logits: torch.Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
            if draft.probabilities is not None:
                draft.probabilities = draft.probabilities * 0.9  # accepts a little too often
            return super().verify(logits, draft, state)

    decoder = judged_by(Eager, AssistedDecoding)(toy(1), draft_length=3, confidence_threshold=0.0)
    assert measured(decoder, REJECTING, toy()) > 4


TREES = {
    "siblings": TokenTree((-1, 0, 0, 0, 1, 1, 2)),
    "chain": TokenTree.chain(2),
    "deep": TokenTree((-1, 0, 1, 0, 3, 3, 5)),
}


@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "picked"])
@pytest.mark.parametrize("shape", [*TREES, "drafted chain"])
def test_trees_keep_the_law(shape: str, drawn: bool) -> None:
    """The first two tokens of a round over trees: drawn children with their distributions, or picked ones without."""
    tree, vocabulary, rows = TREES.get(shape, TokenTree.chain(2)), 4, 10_000
    generator = torch.Generator().manual_seed(5)
    # the target's logits behind the root and behind each first token
    table = torch.randn(1 + vocabulary, vocabulary, generator=generator, dtype=torch.float64)
    proposal = torch.randn(vocabulary, generator=generator, dtype=torch.float64).softmax(-1)
    nodes = len(tree) - 1
    if drawn:
        tokens = torch.multinomial(proposal, rows * nodes, replacement=True, generator=generator).reshape(rows, nodes)
    else:
        tokens = torch.tensor([1, 3, 0, 2, 1, 1])[:nodes].expand(rows, -1)
    logits = torch.zeros(rows, nodes + 1, vocabulary, dtype=torch.float64)
    logits[:, 0] = table[0]
    for node in range(1, nodes + 1):
        if tree.depths[node] == 1:
            logits[:, node] = table[1 + tokens[:, node - 1]]
    probabilities = proposal.expand(rows, nodes, -1) if drawn else None
    draft = Draft(tokens, [nodes] * rows, probabilities, TREES.get(shape))
    verdicts = verify_sampling(logits, draft, Sampling(), Sampling(seed=3).streams(rows))
    first = torch.zeros(vocabulary, dtype=torch.float64)
    second = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    for row, verdict in enumerate(verdicts):
        text = draft.verified(row, verdict)
        assert tree.path(verdict.path[-1]) == tuple(verdict.path)
        first[text[0]] += 1
        if len(text) > 1:
            second[text[0], text[1]] += 1
    wanted = table.softmax(-1)
    assert abs(deviation(first, wanted[0])) < 4
    tried = [token for token in range(vocabulary) if second[token].sum() > 500]
    assert tried
    for token in tried:
        assert abs(deviation(second[token], wanted[1 + token])) < 4
