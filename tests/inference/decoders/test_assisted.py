"""What is particular to assisted decoding; what all decoders share is tested in the folder above."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saccade.inference import AssistedDecoding, Autoregressive
from saccade.inference.drafting.control import DraftControl
from tests.support.models import copy_layers, prompts, tiny_model


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_draft_that_is_the_target_is_always_right(length: int) -> None:
    model = tiny_model()
    decoder = AssistedDecoding(copy_layers(model, 3), draft_length=length, confidence_threshold=0.0)
    out = decoder.generate(model, **prompts(model, [6]), max_new_tokens=1 + 4 * (length + 1))
    assert out.stats.acceptance_histogram == {length: 4}
    assert out.stats.target_forwards == 5
    assert out.stats.mean_acceptance_length == length + 1


def test_an_unsure_draft_stops_behind_its_first_token() -> None:
    model = tiny_model()
    decoder = AssistedDecoding(copy_layers(model, 1), draft_length=5, confidence_threshold=1.0)
    out = decoder.generate(model, **prompts(model, [6, 3]), max_new_tokens=20)
    assert 0 < out.stats.drafted <= out.stats.verify_steps


def test_a_draft_in_a_folder_is_loaded_once_for_each_precision(tmp_path: Path) -> None:
    model = tiny_model()
    copy_layers(model, 1).save_pretrained(tmp_path)
    decoder = AssistedDecoding(str(tmp_path), draft_length=3)
    batch = prompts(model, [6])
    for target in (model, model, tiny_model(dtype=torch.float32)):
        out = decoder.generate(target, **batch, max_new_tokens=10)
        assert out.tokens == Autoregressive().generate(target, **batch, max_new_tokens=10).tokens
    assert sorted(decoder._loaded) == [f"{tmp_path} cpu torch.float32", f"{tmp_path} cpu torch.float64"]
    assert [part.dtype for part in decoder._loaded.values()] == [torch.float64, torch.float32]


def test_the_drafts_cache_is_counted() -> None:
    model = tiny_model(layers=3)
    batch = prompts(model, [6])
    alone = Autoregressive().generate(model, **batch, max_new_tokens=10).stats.kv_cache_bytes
    decoder = AssistedDecoding(copy_layers(model, 1), draft_length=4)
    both = decoder.generate(model, **batch, max_new_tokens=10).stats.kv_cache_bytes
    slots = 6 + 10
    assert both == (3 + 1) * (alone // 3 // slots) * (slots + 4)


@pytest.mark.draft_control
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_a_draft_after_many_plain_rounds_reads_them_in_pieces(engine, monkeypatch) -> None:
    """A step has room for 64 tokens, and two rows need not have missed the same number."""

    class Late(DraftControl):
        def length(self, grade: int | None = None) -> int:
            return 3 if self.rounds == 1 or self.rounds >= 150 else 0

    monkeypatch.setattr("saccade.inference.decoder.DraftControl", Late)
    model = tiny_model()
    draft = copy_layers(model, 3)  # the target itself: every draft is right if its cache is
    decoder = AssistedDecoding(draft, draft_length=3, confidence_threshold=0.0, control="auto", engine=engine)
    decoder.pool.uncaptured = True
    batch = prompts(model, [6, 3])
    out = decoder.generate(model, **batch, max_new_tokens=180, eos_token_id=())
    assert out.tokens == Autoregressive().generate(model, **batch, max_new_tokens=180, eos_token_id=()).tokens
    assert out.stats.drafted > 40
    assert out.stats.draft_acceptance_rate == 1.0
