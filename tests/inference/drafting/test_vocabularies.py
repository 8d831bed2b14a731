"""Vocabularies of one tokenizer whose embeddings are padded differently: the draft's is brought to the target's."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import AssistedDecoding, Autoregressive, LVSpec, Sampling, SpecVLM
from saccade.inference.drafting.chain import ChainDrafter
from saccade.inference.drafting.loading import known_tokens, to_vocabulary
from saccade.inference.verification.draft import Draft
from saccade.inference.verification.relaxed import Strict
from tests.support.errors import one_line
from tests.support.models import prompts, tiny_model
from tests.support.video_checks import asked, video_draft_model, video_model
from tests.support.video_models import video_prompts

IDS = torch.tensor([[3, 39, 4, 1, 5]])


def test_logits_in_the_width_of_the_target() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert to_vocabulary(logits, 3) is not None
    assert torch.equal(to_vocabulary(logits, 2), logits[:, :2])
    wide = to_vocabulary(logits, 5)
    assert torch.equal(wide.softmax(-1)[:, :3], logits.softmax(-1))
    assert wide.softmax(-1)[0, 3:].tolist() == [0, 0]
    assert list(known_tokens(tiny_model(vocabulary=40), [3, 39, 40, 47])) == [3, 39, 0, 0]


@pytest.mark.parametrize("sampling", [None, Sampling(0.8, seed=2)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("theirs", [32, 48, 56])
def test_a_draft_with_fewer_or_more_ids(
    theirs: int, sampling: Sampling | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, draft = tiny_model(vocabulary=40), tiny_model(vocabulary=theirs, layers=1, seed=1)
    with torch.no_grad():
        draft.lm_head.weight[40:] *= 20  # it would like to propose what the target lacks
    drafted: list[Draft] = []
    plain = ChainDrafter.draft

    def draft_and_keep(self: ChainDrafter, *given: object) -> Draft:
        drafted.append(plain(self, *given))  # type: ignore[arg-type]
        return drafted[-1]

    monkeypatch.setattr(ChainDrafter, "draft", draft_and_keep)
    batch = prompts(model, [6, 9], seed=3) if sampling is None else {"input_ids": IDS}
    decoder = AssistedDecoding(draft, confidence_threshold=0.0)
    out = decoder.generate(model, **batch, max_new_tokens=14, sampling=sampling)
    if sampling is None:
        assert torch.equal(out.sequences, model.generate(**batch, max_new_tokens=14, do_sample=False))
    tokens = [token for each in drafted for row in each.tokens.tolist() for token in row]
    assert tokens
    assert max(tokens) < min(40, theirs)
    for each in drafted:
        if each.probabilities is not None:
            assert each.probabilities.shape[-1] == 40
            torch.testing.assert_close(each.probabilities.sum(-1), torch.ones_like(each.probabilities[..., 0]))


@pytest.mark.parametrize("theirs", [8, 24])
def test_the_sampling_law_holds(theirs: int) -> None:
    """The second token's distribution is the target's own, though drafts know other ids."""
    model = tiny_model(vocabulary=16, layers=1, sharpness=0.5)
    draft = tiny_model(vocabulary=theirs, layers=1, seed=1, sharpness=0.5)
    ids = torch.tensor([[3, 15, 4]]).expand(4000, -1)
    found = AssistedDecoding(draft, draft_length=2, confidence_threshold=0.0).generate(
        model, ids, max_new_tokens=2, sampling=Sampling(seed=5)
    )
    logits = model(ids[:1]).logits[0, -1]
    first = logits.softmax(-1)
    law = torch.zeros(16, dtype=torch.float64)
    for token in range(16):
        law += first[token] * model(torch.tensor([[3, 15, 4, token]])).logits[0, -1].softmax(-1)
    counts = Counter(row[1] for row in found.tokens)
    share = torch.tensor([counts[token] / 4000 for token in range(16)], dtype=torch.float64)
    assert float((share - law).abs().max()) < 4 * 0.5 / 4000**0.5


def resized(model: PreTrainedModel, size: int) -> PreTrainedModel:
    other = copy.deepcopy(model)
    other.resize_token_embeddings(size)
    return other


@pytest.mark.parametrize("theirs", [56, 72])
def test_drafts_that_read_videos(theirs: int) -> None:
    model = resized(video_model("qwen2_5_vl"), 64)
    draft = resized(video_draft_model("qwen2_5_vl"), theirs)
    given = asked(video_prompts("qwen2_5_vl", rows=2, seed=1))
    right = Autoregressive().generate(model, **given, max_new_tokens=10).tokens
    for decoder in (SpecVLM(draft, prune_ratio=0.5), LVSpec(draft, rule=Strict())):
        assert decoder.generate(model, **given, max_new_tokens=10).tokens == right


def test_other_vocabularies_are_refused() -> None:
    model = tiny_model(vocabulary=40)
    for theirs in (39, 41, 44, 560):
        draft = tiny_model(vocabulary=theirs, layers=1)
        one_line(lambda d=draft: AssistedDecoding(d).generate(model, IDS), str(theirs), "40", "tokenizer")
