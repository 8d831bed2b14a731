"""Video token dropout: hidden tokens are as if they were not there, at the places of the whole prompt."""

from __future__ import annotations

import pytest
import torch

from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.modules.language.video_dropout import VideoTokenDropout
from tests.support.video_checks import asked_of_transformers
from tests.support.video_models import FAMILIES, tiny_video_model, video_prompts


def logits(model, inputs):
    return model(**inputs, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_tokens_change_nothing_and_the_others_keep_their_positions(family):
    """Features of hidden tokens are replaced by noise, and no answer changes; those of seen ones do change them."""
    model = tiny_video_model(family, dtype=torch.float64).train()
    inputs = asked_of_transformers(video_prompts(family, rows=2, seed=4, dtype=torch.float64))
    dropout = VideoTokenDropout(model, 0.9)
    dropout.attach()
    seen = dropout.draw(inputs["input_ids"], torch.Generator().manual_seed(2))
    video = torch.isin(inputs["input_ids"], torch.tensor(visual_token_ids(model)))
    assert seen[~video].all()
    assert 0 < (~seen).sum() < video.sum()
    text = inputs["attention_mask"].bool() & ~video
    before = logits(model, inputs)
    given = []

    def spoil(where):
        def hook(module, args, named):
            given.append((named["attention_mask"], named.get("position_ids")))
            return args, named | {"inputs_embeds": named["inputs_embeds"] + 5.0 * where[..., None]}

        return language_part(model).register_forward_pre_hook(hook, with_kwargs=True)

    for where, same in ((~seen, True), (seen & video, False)):
        handle = spoil(where)
        after = logits(model, inputs)
        handle.remove()
        assert torch.allclose(before[text], after[text], atol=1e-12) == same
    dropout.clear()
    handle = spoil(torch.zeros_like(seen))
    whole = logits(model, inputs)
    handle.remove()
    dropout.remove()
    assert not torch.allclose(whole[text], before[text], atol=1e-6)
    assert torch.equal(whole, logits(model, inputs))
    # the same positions with and without hidden tokens
    positions = [item for _, item in given if item is not None]
    assert all(torch.equal(item, positions[0]) for item in positions)
    assert torch.equal(given[0][0].bool(), inputs["attention_mask"].bool() & seen)


def test_nothing_is_hidden_in_evaluation_mode():
    """Validation inside of training captions whole videos."""
    model = tiny_video_model("qwen2_5_vl", dtype=torch.float64).eval()
    inputs = asked_of_transformers(video_prompts("qwen2_5_vl", rows=1, seed=4, dtype=torch.float64))
    whole = logits(model, inputs)
    dropout = VideoTokenDropout(model, 1.0)
    dropout.attach()
    dropout.draw(inputs["input_ids"], torch.Generator().manual_seed(2))
    assert torch.equal(logits(model, inputs), whole)


def test_every_sequence_draws_its_own_share():
    """Shares lie between none and the largest, and differ."""
    model = tiny_video_model("qwen2_5_vl")
    ids = torch.full((200, 400), visual_token_ids(model)[-1])
    dropout = VideoTokenDropout(model, 0.8)
    hidden = 1 - dropout.draw(ids, torch.Generator().manual_seed(0)).float().mean(1)
    assert hidden.min() < 0.05
    assert 0.7 < hidden.max() < 0.87
    assert abs(hidden.mean() - 0.4) < 0.05


def test_a_rate_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"video_dropout must be between 0 and 1, got 1\.5"):
        VideoTokenDropout(tiny_video_model("qwen2_5_vl"), 1.5)
