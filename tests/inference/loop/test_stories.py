"""The really trained model that other tests use is read rightly."""

from __future__ import annotations

import torch

from saccade.inference import Autoregressive, SelfSpeculative
from tests.support.stories import load_stories, spec_bench_prompts, stories_tokenizer


def test_it_writes_a_childrens_story() -> None:
    model, tokenizer = load_stories(), stories_tokenizer()
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    text = tokenizer.decode(Autoregressive().generate(model, ids, max_new_tokens=100).sequences[0].tolist())
    assert text.startswith(" Once upon a time, there was a little girl named Lily. She loved to play outside")


def test_the_tokenizer_reads_back_what_it_wrote() -> None:
    tokenizer = stories_tokenizer()
    assert len(tokenizer.pieces) == 512
    for text in ("Once upon a time", "Zürich — 12 €\n\n a  b", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == " " + text
    assert len(tokenizer.encode("Once upon a time")) == 5


def test_prompts_are_cut_to_the_context() -> None:
    rows = spec_bench_prompts(200, 384)
    assert len(rows) == 200
    assert max(len(row) for row in rows) == 384
    assert min(len(row) for row in rows) > 1


def test_a_trained_model_is_a_draft_of_itself() -> None:
    # acceptance on a model that has learned something, far from what chance would give
    model, tokenizer = load_stories(), stories_tokenizer()
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    skip = {"attention": [], "mlp": [2]}
    stats = SelfSpeculative(skip=skip, draft_length=4, gamma=0.3).generate(model, ids, max_new_tokens=100).stats
    assert stats.draft_acceptance_rate > 0.3
    assert stats.target_forwards < 80
