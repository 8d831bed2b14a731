"""Sub-layer dropout: what is dropped is skipped, per sequence, and nothing stays behind."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from saccade.inference.huggingface.sublayer_skip import skipped_sublayers
from saccade.modules.language.construction import complete_config, model_from_config
from saccade.modules.language.sublayer_dropout import SublayerDropout
from tests.modules.language.tiny import CONFIG

LAYERS = 3


@pytest.fixture
def model() -> Iterator[PreTrainedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = complete_config({**CONFIG, "num_hidden_layers": LAYERS, "vocab_size": 50}, None)
        # large weights, so that a missing sub-layer is plainly visible in the logits
        config.initializer_range = 0.3
        yield model_from_config(config, seed=0).double().train()


def _tokens(batch: int) -> Tensor:
    return torch.randint(0, 50, (batch, 9), generator=torch.Generator().manual_seed(1))


def _draw(dropout: SublayerDropout, batch: int, seed: int = 0) -> Tensor:
    return dropout.draw(batch, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_rate_zero_changes_nothing(model: PreTrainedModel) -> None:
    tokens = _tokens(4)
    plain = model(tokens).logits
    dropout = SublayerDropout(model, 0.0)
    dropout.attach()
    assert bool((_draw(dropout, 4) == 1).all())
    assert torch.equal(model(tokens).logits, plain)


def test_a_dropped_sublayer_is_exactly_a_skipped_one_for_every_sequence(model: PreTrainedModel) -> None:
    tokens = _tokens(6)
    plain = model(tokens).logits
    dropout = SublayerDropout(model, 0.9)
    dropout.attach()
    keep = _draw(dropout, 6)
    assert keep.shape == (2 * LAYERS, 6)
    dropped = model(tokens).logits
    dropout.remove()
    assert len({tuple(column) for column in keep.T.tolist()}) > 1, "the sequences should draw different masks"
    for row in range(6):
        attention = [i for i in range(LAYERS) if keep[2 * i, row] == 0]
        mlp = [i for i in range(LAYERS) if keep[2 * i + 1, row] == 0]
        with skipped_sublayers(model, attention, mlp):
            expected = model(tokens[row : row + 1]).logits[0]
        assert torch.allclose(dropped[row], expected, atol=1e-12)
        if attention or mlp:
            assert not torch.allclose(dropped[row], plain[row], atol=1e-3)


def test_sequences_draw_their_own_rate(model: PreTrainedModel) -> None:
    keep = _draw(SublayerDropout(model, 0.8), 20_000)
    kept = keep.mean(0)
    assert float(1 - kept.mean()) == pytest.approx(0.4, abs=0.01)
    # with one rate of 0.4 for all, 0.6 ** 6 = 4.7 % of the sequences would lose nothing; with uniform rates it is
    # the mean of (1 - r) ** 6 over [0, 0.8] = (1 - 0.2 ** 7) / 5.6 = 17.9 %
    assert float((kept == 1).float().mean()) == pytest.approx(0.179, abs=0.01)


def test_evaluation_and_cleared_masks_compute_the_whole_model(model: PreTrainedModel) -> None:
    tokens = _tokens(4)
    plain = model(tokens).logits
    dropout = SublayerDropout(model, 1.0)
    dropout.attach()
    _draw(dropout, 4)
    assert not torch.allclose(model(tokens).logits, plain)
    model.eval()
    assert torch.equal(model(tokens).logits, plain)
    assert model(_tokens(7)).logits.shape[0] == 7
    model.train()
    dropout.clear()
    assert torch.equal(model(tokens).logits, plain)


def test_removed_hooks_leave_no_trace(model: PreTrainedModel) -> None:
    def traces() -> list[tuple[str, int, tuple[str, ...]]]:
        return [(name, len(part._forward_hooks), tuple(vars(part))) for name, part in model.named_modules()]

    before = traces()
    dropout = SublayerDropout(model, 0.5)
    assert traces() == before
    dropout.attach()
    dropout.attach()
    assert sum(count for _, count, _ in traces()) == sum(count for _, count, _ in before) + 2 * LAYERS
    dropout.remove()
    assert traces() == before


def test_gradient_reaches_every_parameter_even_when_all_is_dropped(model: PreTrainedModel) -> None:
    dropout = SublayerDropout(model, 1.0)
    dropout.attach()
    _draw(dropout, 2)
    assert dropout._keep is not None
    dropout._keep.zero_()
    model(_tokens(2)).logits.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_recomputes_with_the_same_masks(model: PreTrainedModel) -> None:
    dropout = SublayerDropout(model, 0.9)
    dropout.attach()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        _draw(dropout, 5, seed=3)
        model(_tokens(5), use_cache=False).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(*gradients, strict=True))


def test_impossible_rate_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=r"sublayer_dropout must be between 0 and 1, got 1\.5"):
        SublayerDropout(model, 1.5)
