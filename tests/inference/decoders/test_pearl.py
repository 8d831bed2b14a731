"""What is particular to PEARL; what all decoders share is tested in the folder above, its rounds in ``parallel``."""

from __future__ import annotations

import pytest
import torch

from saccade.inference import Autoregressive, Pearl
from tests.support.models import copy_layers, tiny_model


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_a_perfect_draft_gives_gamma_tokens_a_round(gamma: int) -> None:
    model = tiny_model()
    out = Pearl(copy_layers(model, 3), gamma=gamma).generate(model, torch.tensor([[3, 1, 2]]), max_new_tokens=41)
    # the first round reads the prompt, and the block that is written meanwhile is verified in the next one
    assert out.stats.target_forwards == 1 + -(-40 // gamma)
    assert out.stats.acceptance_histogram == {gamma - 1: 40 // gamma}


def test_a_draft_that_is_always_wrong_gives_the_targets_tokens() -> None:
    model, draft = tiny_model(), tiny_model()
    with torch.no_grad():
        draft.lm_head.weight.neg_()
    ids = torch.tensor([[3, 1, 2]])
    out = Pearl(draft, gamma=3).generate(model, ids, max_new_tokens=12)
    assert out.tokens == Autoregressive().generate(model, ids, max_new_tokens=12).tokens
    assert out.stats.accepted == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0}, "gamma must be at least 1, got 0: raise it."),
        ({"gamma": 64}, "gamma must be at most 63, what a round verifies, got 64: give about the number of draft"),
        ({"devices": "gpu"}, "devices must be auto or the name of a device, got 'gpu': give for example cuda:1."),
        ({"devices": 1}, "devices must be auto or the name of a device, got 1: give for example cuda:1."),
        ({"draft_model": None}, "draft_model must be a path, a hub id or a loaded model, got None: give one of these."),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Pearl(**{"draft_model": "path/to/draft"} | settings)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_a_device_that_is_not_there() -> None:
    model = tiny_model()
    decoder = Pearl("path/to/draft", devices="cuda:77")
    with pytest.raises(ValueError, match=r"^devices must be auto or a device that is there, got cuda:77 with"):
        decoder.generate(model, torch.tensor([[3, 1, 2]]), max_new_tokens=2)


def test_a_loaded_draft_stays_where_it_is() -> None:
    model = tiny_model()
    decoder = Pearl(copy_layers(model, 1), devices="meta")
    with pytest.raises(ValueError, match=r"^devices must be auto or cpu, where the loaded draft model is, got"):
        decoder.generate(model, torch.tensor([[3, 1, 2]]), max_new_tokens=2)
