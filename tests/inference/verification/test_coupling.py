"""Sampling with shared noise: one text for a seed, whatever decodes it, and in which batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from saccade.inference import (
    AssistedDecoding,
    Autoregressive,
    Decoder,
    PromptLookup,
    Sampling,
    SelfSpeculative,
    SpecVLM,
    TokenTree,
    sampling,
)
from saccade.inference.choice import best_tokens
from saccade.inference.drafting import chain
from saccade.inference.noise import gumbel_noise
from saccade.inference.state import GenerationState
from tests.support.decoders import LOSSLESS, Proposing, ProposingTrees
from tests.support.errors import one_line
from tests.support.models import copy_layers, tiny_model
from tests.support.video_checks import asked, video_draft_model, video_model
from tests.support.video_models import FAMILIES, video_prompts

NEW = 20
MODELS = {"llama": 34, "qwen2": 33, "qwen3": 33}  # 100 prompts in all
PLAIN = Sampling(seed=7)
WARPED = Sampling(temperature=0.8, top_k=25, top_p=0.9, seed=7)


@cache
def model(architecture: str) -> PreTrainedModel:
    return tiny_model(architecture, residual=0.3, seed=3)


@cache
def texts(architecture: str) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    lengths = [1 + (7 * row) % 23 for row in range(MODELS[architecture])]
    return [torch.randint(0, 40, (length,), generator=draw).tolist() for length in lengths]


def written(decoder: Decoder, architecture: str, sampling: Sampling, batch: int) -> list[list[int]]:
    """The text behind every prompt, each with its own number, decoded in batches."""
    found = []
    prompts = texts(architecture)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        drawn = Sampling(*sampling.warpers, sampling.seed, rows=list(range(start, start + len(part))))
        found += decoder.generate(model(architecture), part, max_new_tokens=NEW, sampling=drawn).tokens
    return found


@cache
def alone(architecture: str, warped: bool) -> list[list[int]]:
    return written(Autoregressive(), architecture, WARPED if warped else PLAIN, 100)


@pytest.mark.parametrize("warped", [False, True], ids=["plain", "warped"])
@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("name", LOSSLESS)
def test_every_decoder_writes_the_same_text_in_every_batch(name: str, architecture: str, warped: bool) -> None:
    right, sampling = alone(architecture, warped), WARPED if warped else PLAIN
    assert len({tuple(row) for row in right}) == len(right)
    decoder = LOSSLESS[name].build(copy_layers(model(architecture), 1))
    assert written(decoder, architecture, sampling, 5 if name == "autoregressive" else 17) == right


@pytest.mark.parametrize("length", [1, 6])
def test_the_draft_length_does_not_matter(length: int) -> None:
    draft = copy_layers(model("llama"), 1)
    for decoder in (
        PromptLookup(draft_length=length),
        AssistedDecoding(draft, draft_length=length, confidence_threshold=0.2),
        SelfSpeculative({"attention": [1], "mlp": [1]}, draft_length=length, gamma=0.1),
    ):
        assert written(decoder, "llama", WARPED, 34) == alone("llama", True)


def test_drafts_are_accepted_where_the_noise_decides_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(coupling: str) -> float:
        decoder = AssistedDecoding(copy_layers(model("llama"), 2), draft_length=4, confidence_threshold=0.0)
        drawn = Sampling(seed=1, coupling=coupling)  # type: ignore[arg-type]
        stats = decoder.generate(model("llama"), texts("llama"), max_new_tokens=40, sampling=drawn).stats
        return stats.draft_acceptance_rate

    def elsewhere(logits: Tensor, state: GenerationState, depths: list[int]) -> Tensor:
        return best_tokens(logits, state, [depth + 1000 for depth in depths])

    shared, rejection = rate("gumbel"), rate("rejection")
    monkeypatch.setattr(chain, "best_tokens", elsewhere)
    apart = rate("gumbel")
    assert 2 * apart < shared < rejection  # rejection sampling accepts the most that can be


@pytest.mark.parametrize("family", FAMILIES)
def test_trees_and_chains_beside_videos(family: str) -> None:
    target, draft = video_model(family), video_draft_model(family)
    given = asked(video_prompts(family, rows=3, seed=1))
    right = Autoregressive().generate(target, **given, max_new_tokens=16, sampling=WARPED).tokens
    accepted = 0
    for decoder in (SpecVLM(draft, prune_ratio=0.5), SpecVLM(prune_ratio=0.5, tree="chain"), SpecVLM(tree=[[0], [1]])):
        out = decoder.generate(target, **given, max_new_tokens=16, sampling=WARPED)
        assert out.tokens == right
        accepted += out.stats.accepted
    assert accepted > 10


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_draft_leaves_the_text_alone(data: st.DataObject) -> None:
    prompts, right = texts("qwen3")[:3], alone("qwen3", False)[:3]
    whole = [prompt + new for prompt, new in zip(prompts, right, strict=True)]
    wrong = data.draw(st.sampled_from([0, 3, 11, 39]))
    parents = [-1] + [data.draw(st.integers(0, node)) for node in range(data.draw(st.integers(1, 6)))]
    tree = TokenTree(tuple(parents))

    def continuation(text: list[int]) -> list[int]:
        return [*next(row for row in whole if row[: len(text)] == text)[len(text) :], *[0] * 9]

    def propose(text: list[int], limit: int = 6) -> list[int]:
        known = continuation(text)
        return [known[depth - 1] if (len(text) + node) % 4 else wrong for node, depth in enumerate(tree.depths)][1:]

    for decoder in (ProposingTrees(tree, propose), Proposing(lambda text, limit: continuation(text)[:limit])):
        assert decoder.generate(model("qwen3"), prompts, max_new_tokens=NEW, sampling=PLAIN).tokens == right


def test_noise_by_call_instead_of_by_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def by_call(keys: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
        calls.append(1)
        return gumbel_noise(keys, torch.full_like(positions, len(calls)), vocabulary)

    monkeypatch.setattr(sampling, "gumbel_noise", by_call)
    draft = copy_layers(model("llama"), 1)
    found = []
    for decoder in (Autoregressive(), PromptLookup(), AssistedDecoding(draft, confidence_threshold=0.0)):
        calls.clear()
        found.append(written(decoder, "llama", PLAIN, 100))
    assert found[0] != found[1]
    assert found[0] != found[2]


def test_a_text_that_is_cut_goes_on_as_it_would_have() -> None:
    """Noise belongs to positions in the whole text, not to the new tokens of a call."""
    (prompt, *_), (right, *_) = texts("llama"), alone("llama", False)
    out = PromptLookup().generate(model("llama"), [prompt + right[:8]], max_new_tokens=NEW - 8, sampling=PLAIN)
    assert out.tokens[0] == right[8:]


def test_rows_have_noise_of_their_own() -> None:
    same = [texts("llama")[3]] * 6
    together = Autoregressive().generate(model("llama"), same, max_new_tokens=NEW, sampling=PLAIN).tokens
    assert len({tuple(row) for row in together}) == 6
    picked = Sampling(seed=7, rows=[4, 0])
    assert Autoregressive().generate(model("llama"), same[:2], max_new_tokens=NEW, sampling=picked).tokens == [
        together[4],
        together[0],
    ]
    # rejection sampling numbers its rows in the same way
    streams = Sampling(seed=7, rows=[4, 0]).streams(2), Sampling(seed=7).streams(5)
    assert [stream.random() for stream in streams[0]] == [streams[1][row].random() for row in (4, 0)]


def test_without_a_seed_torchs_generator_gives_one() -> None:
    outs = []
    for decoder in (Autoregressive(), PromptLookup(), AssistedDecoding(copy_layers(model("llama"), 1))):
        torch.manual_seed(3)
        outs.append([decoder.generate(model("llama"), texts("llama"), sampling=Sampling()).tokens for _ in range(2)])
    assert outs[0] == outs[1] == outs[2]
    assert outs[0][0] != outs[0][1]  # every call draws another seed


def test_wrong_settings() -> None:
    one_line(lambda: Sampling(coupling="maximal"), "coupling", "gumbel or rejection", "'maximal'")  # type: ignore[arg-type]
    one_line(lambda: Sampling(rows=[0, 1.5]), "rows", "whole number", "1.5")  # type: ignore[list-item]
    for rows in (3, "12"):
        one_line(lambda r=rows: Sampling(rows=r), "rows", "a list of whole numbers", repr(rows))  # type: ignore[misc]
    wrong = Sampling(rows=[0, 1, 2])
    one_line(lambda: Autoregressive().generate(model("llama"), [[1], [2]], sampling=wrong), "sampling.rows", "2", "3")
