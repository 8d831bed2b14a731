"""What is particular to prompt lookup; what all decoders share is tested in the folder above."""

from __future__ import annotations

import torch

from saccade.inference import PromptLookup
from tests.support.models import plant_constant, tiny_model


def test_text_that_repeats_itself_is_accepted_whole() -> None:
    model = tiny_model()
    plant_constant(model, 7)
    out = PromptLookup(draft_length=5).generate(model, torch.tensor([[7] * 12]), max_new_tokens=13)
    assert out.tokens == [[7] * 13]
    assert out.stats.acceptance_histogram == {5: 2}
    assert out.stats.target_forwards == 3


def test_a_row_without_a_match_drafts_nothing() -> None:
    model = tiny_model()
    plant_constant(model, 7)
    out = PromptLookup().generate(model, torch.tensor([[1, 2, 3, 4, 5]]), max_new_tokens=2)
    assert out.stats.drafted == 0
