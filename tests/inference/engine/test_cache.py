"""Must show 4: after every round the cache is what reading the text from scratch gives; trees, EOS and limits too."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import MethodType

import pytest
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from saccade.inference import Autoregressive, Decoder, PromptLookup, Sampling, Session, TokenTree
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.engine.cache import KVCache
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict
from tests.support.decoders import DECODERS, LOSSLESS, Proposing, ProposingTrees
from tests.support.models import copy_layers, prompts, tiny_model

WITHIN = 1e-6  # transformers' norms round to float32


class Audit:
    """Compares a session's cache after every round with a prefill from scratch by transformers' own code."""

    def __init__(self, decoder: Decoder, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        self.rounds = self.rejections = 0
        original = decoder.drafter

        def drafter(_: Decoder, target: nn.Module, request: Request) -> Drafter:
            made = original(target, request)
            observe = made.observe

            def audited(state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
                self.check(state)
                self.rejections += sum(len(v.path) - 1 < n for v, n in zip(verdicts, draft.counts, strict=True))
                observe(state, draft, verdicts)

            made.observe = audited  # type: ignore[method-assign]
            return made

        decoder.drafter = MethodType(drafter, decoder)  # type: ignore[method-assign]

    def check(self, state: GenerationState) -> None:
        session = state.session
        assert session.lengths == [len(text) - 1 for text in state.texts]
        last = session.token_column([text[-1] for text in state.texts])
        # writes behind the committed slots only, and is not committed
        logits = session.forward(last)[:, -1]
        for row, text in enumerate(state.texts):
            fresh = DynamicCache()
            with torch.no_grad():
                expected = self.model(torch.tensor([text]), past_key_values=fresh).logits[0, -1]
            assert (logits[row] - expected).abs().max() < WITHIN
            length = session.lengths[row]
            for layer, states in enumerate(fresh.layers):
                for buffer, right in ((session.storage.keys, states.keys), (session.storage.values, states.values)):
                    held = buffer[layer]
                    assert held is not None
                    assert (held[row, :, :length] - right[0, :, :length]).abs().max() < WITHIN
        self.rounds += 1


SAMPLED = Sampling(temperature=0.5, seed=3)


@pytest.mark.parametrize("sampling", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_cache_after_every_round(name: str, architecture: str, sampling: Sampling | None) -> None:
    model = tiny_model(architecture, residual=0.5, context=40)
    decoder = DECODERS[name](model)
    audit = Audit(decoder, model)
    # to the last position of the context, with rows that end at different times
    batch = prompts(model, [12, 2, 7])
    free = Autoregressive().generate(model, **batch, max_new_tokens=28).tokens
    out = decoder.generate(model, **batch, max_new_tokens=28, sampling=sampling, eos_token_id=free[1][9])
    assert audit.rounds >= 5
    assert audit.rejections > 0 or name == "autoregressive"
    assert all(len(row) <= 28 for row in out.tokens)


TREE = TokenTree((-1, 0, 0, 1, 1, 2, 4))


def test_the_cache_after_rounds_over_trees() -> None:
    model = tiny_model(context=80)
    texts = prompts(model, [9, 4])
    right = Autoregressive().generate(model, **texts, max_new_tokens=40)
    full = [ids[mask.bool()].tolist() + new for ids, mask, new in zip(*texts.values(), right.tokens, strict=True)]

    def propose(text: list[int]) -> list[int]:
        # the right tokens lie on the path 0-1-4-6 in even rounds, and end at the second node in odd ones
        known = [*next(whole for whole in full if whole[: len(text)] == text)[len(text) :], 0, 0, 0]
        wrong = [(token + 1) % 40 for token in known]
        if len(text) % 2:
            return [wrong[0], known[0], known[1], wrong[1], wrong[1], known[2]]
        return [known[0], wrong[0], wrong[1], known[1], known[1], known[2]]

    decoder = ProposingTrees(TREE, propose)
    audit = Audit(decoder, model)
    out = decoder.generate(model, **texts, max_new_tokens=40)
    assert out.tokens == right.tokens
    assert out.stats.acceptance_histogram.get(3, 0) > 3  # paths that are no slice of the nodes were kept
    assert audit.rounds > 5


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_tree_in_one_forward_is_its_paths_one_by_one(architecture: str) -> None:
    model = tiny_model(architecture)
    texts = [[3, 9, 27, 4, 12], [7, 8], [1, 2, 3, 4, 5, 6, 7]]
    nodes = torch.randint(0, 40, (3, len(TREE)), generator=torch.Generator().manual_seed(1))
    with Session(model, 20) as session:
        session.prefill(texts)
        logits = session.forward(nodes, TREE)
        assert session.lengths == [5, 2, 7]
        for row, text in enumerate(texts):
            for path in TREE.paths:
                whole = torch.tensor([text + nodes[row, list(path)].tolist()])
                with torch.no_grad():
                    right = model(whole).logits[0, len(text) :]
                assert (logits[row, list(path)] - right).abs().max() < WITHIN
        # rows keep different paths; one of them nothing
        paths = [(0, 1, 4, 6), (0, 2, 5), ()]
        session.commit(paths)
        assert session.lengths == [9, 5, 7]
        token = session.token_column([11, 11, 11])
        logits = session.forward(token)[:, -1]
        for row, (text, path) in enumerate(zip(texts, paths, strict=True)):
            with torch.no_grad():
                right = model(torch.tensor([[*text, *nodes[row, list(path)].tolist(), 11]])).logits[0, -1]
            assert (logits[row] - right).abs().max() < WITHIN
        # rolling back moves a number; what was there is still right
        session.truncate([6, 99, 3])
        assert session.lengths == [6, 5, 3]
        session.keep([2, 0])
        assert session.lengths == [3, 6]
        logits = session.forward(token[:2])[:, -1]
        for row, text in enumerate([texts[2][:3], [*texts[0], int(nodes[0, 0])]]):
            with torch.no_grad():
                right = model(torch.tensor([[*text, 11]])).logits[0, -1]
            assert (logits[row] - right).abs().max() < WITHIN


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_row_ends_with_its_first_committed_eos(name: str) -> None:
    model = tiny_model(residual=0.3)
    batch = prompts(model, [9, 5, 12])
    free = Autoregressive().generate(model, **batch, max_new_tokens=30).tokens
    for at in (0, 1, 4, 11, 29):
        eos = [row[at] for row in free]
        out = DECODERS[name](model).generate(model, **batch, max_new_tokens=30, eos_token_id=eos)
        for row, tokens in enumerate(free):
            first = next(index for index, token in enumerate(tokens) if token in eos)
            assert out.tokens[row] == tokens[: first + 1]
        for stats, tokens in zip(out.per_request, out.tokens, strict=True):
            assert stats.new_tokens == len(tokens)


def test_an_eos_that_is_only_drafted_does_not_end_a_row() -> None:
    model = tiny_model()
    batch = prompts(model, [9, 5])
    free = Autoregressive().generate(model, **batch, max_new_tokens=30).tokens
    eos = next(token for token in range(40) if all(token not in row for row in free))
    for drafts in ([eos] * 6, [free[0][1], eos], [eos, eos, 3]):
        out = Proposing(lambda text, limit, drafts=drafts: drafts).generate(
            model, **batch, max_new_tokens=30, eos_token_id=eos
        )
        assert out.tokens == free
        assert out.stats.drafted > 0


def test_an_accepted_eos_ends_a_row_though_more_was_accepted_behind_it() -> None:
    model = tiny_model()
    batch = prompts(model, [9])
    free = Autoregressive().generate(model, **batch, max_new_tokens=30).tokens[0]
    at = next(index for index in range(2, 30) if free[index] not in free[:index])
    start = batch["input_ids"].shape[1]
    oracle = Proposing(lambda text, limit: free[len(text) - start :])
    out = oracle.generate(model, **batch, max_new_tokens=30, eos_token_id=free[at])
    assert out.tokens == [free[: at + 1]]
    assert out.stats.new_tokens == at + 1
    assert out.stats.accepted == sum(count * rounds for count, rounds in out.stats.acceptance_histogram.items())
    assert out.stats.accepted <= at


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 13])
@pytest.mark.parametrize("name", LOSSLESS)
def test_the_length_limit_is_exact(name: str, limit: int) -> None:
    model = tiny_model(residual=0.3)
    batch = prompts(model, [9, 5, 1])
    free = Autoregressive().generate(model, **batch, max_new_tokens=13).tokens
    out = DECODERS[name](model).generate(model, **batch, max_new_tokens=limit)
    assert out.tokens == [row[:limit] for row in free]
    assert out.sequences.shape == (3, 9 + limit)
    longer = DECODERS[name](model).generate(model, **batch, max_length=9 + limit)
    assert torch.equal(longer.sequences, out.sequences)


def test_a_draft_on_a_cache_of_its_own_keeps_up() -> None:
    # a draft that is the target accepts everything, so that its cache must be right after full acceptance as well
    model = tiny_model()
    decoder = DECODERS["assisted"](model)
    decoder.draft_model = copy_layers(model, 3)  # type: ignore[attr-defined]
    out = decoder.generate(model, **prompts(model, [9, 3]), max_new_tokens=41)
    assert out.stats.draft_acceptance_rate == 1.0
    assert out.stats.mean_acceptance_length == 5.0  # 40 tokens in rounds of 4 drafts and a bonus


def test_prompt_lookup_drafts_committed_tokens_only() -> None:
    model = tiny_model()
    batch = prompts(model, [20, 6])
    seen: list[tuple[list[int], list[int]]] = []
    decoder = PromptLookup(max_ngram=2, draft_length=4)
    original = decoder.drafter

    def drafter(_: Decoder, target: nn.Module, request: Request) -> Drafter:
        made = original(target, request)
        draft = made.draft

        def recorded(state: GenerationState, limits: Sequence[int]) -> Draft:
            out = draft(state, limits)
            for text, tokens, count in zip(state.texts, out.tokens.tolist(), out.counts, strict=True):
                seen.append((list(text), tokens[:count]))
            return out

        made.draft = recorded  # type: ignore[method-assign]
        return made

    decoder.drafter = MethodType(drafter, decoder)  # type: ignore[method-assign]
    decoder.generate(model, **batch, max_new_tokens=60)
    assert any(drafted for _, drafted in seen)
    for text, drafted in seen:
        pairs = {}  # what followed the most recent earlier occurrence, found by brute force
        for size in (2, 1):
            ends = [at for at in range(size, len(text)) if text[at - size : at] == text[-size:]]
            if ends:
                copied = list(text)
                for place in range(ends[-1], ends[-1] + 4):  # behind the text, what was copied is copied again
                    copied.append(copied[place])
                pairs[size] = copied[len(text) :]
        right = pairs.get(2, pairs.get(1, []))
        assert drafted == right[: len(drafted)]
        assert bool(drafted) == bool(right) or len(drafted) == 0


@pytest.mark.parametrize("captured", [False, True])
def test_accepted_paths_move_together_and_nothing_else_does(captured: bool) -> None:
    """Paths of different lengths, one of which overwrites what the next place reads, and a row that stays."""
    storage = KVCache(layers=2, capacity=12, captured=captured)
    generator = torch.Generator().manual_seed(0)
    storage.place([0, 0, 0], 12)
    for layer in range(2):
        storage.write(layer, *torch.randn(2, 3, 2, 12, 4, generator=generator))
    before = [buffer.clone() for layer in range(2) for buffer in storage.buffers(layer)]
    starts, paths = [3, 5, 0], [[0, 2, 4, 6], [0, 3], [0]]
    storage.gather(starts, paths)
    for buffer, old in zip((buffer for layer in range(2) for buffer in storage.buffers(layer)), before, strict=True):
        for row, (start, path) in enumerate(zip(starts, paths, strict=True)):
            wanted = old[row].clone()
            for place, node in enumerate(path):
                wanted[:, start + place] = old[row][:, start + node]
            assert torch.equal(buffer[row], wanted)
