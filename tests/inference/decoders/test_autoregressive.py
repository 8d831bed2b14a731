"""What is particular to autoregressive decoding; what all decoders share is tested in the folder above."""

from __future__ import annotations

import pytest

from saccade.inference import Autoregressive
from tests.support.models import prompts, tiny_model


def test_every_row_pays_one_forward_for_each_token() -> None:
    model = tiny_model()
    out = Autoregressive().generate(model, **prompts(model, [4, 9]), max_new_tokens=12)
    assert out.stats.target_forwards == 12, "a forward serves both rows"
    assert [row.target_forwards for row in out.per_request] == [12, 12]
    assert out.stats.drafted == out.stats.draft_forwards == 0
    assert out.stats.mean_acceptance_length == 1.0


def test_the_cache_is_as_large_as_the_longest_text() -> None:
    model = tiny_model(layers=3, hidden=32)  # 2 key-value heads of 8
    out = Autoregressive().generate(model, **prompts(model, [4, 9]), max_new_tokens=12)
    assert out.stats.kv_cache_bytes == 3 * 2 * (2 * 2 * (9 + 12) * 8) * 8


def test_it_has_no_settings() -> None:
    with pytest.raises(TypeError, match="draft_length"):
        Autoregressive(draft_length=2)  # type: ignore[call-arg]
