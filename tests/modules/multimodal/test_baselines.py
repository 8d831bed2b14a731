"""The baselines: every parameter learns, nothing leaks, padding and order do not matter, checkpoints come back."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer

from saccade.modules import CrossmodalTransformer, LateFusion, LNLNLike, MultimodalModule, Optimization, TFRNetLike
from tests.modules.multimodal.tiny import built, first_batch, longer, shuffled, steps, tiny_data, with_missing

SMALL = {"width": 8, "heads": 2}
BASELINES = (LateFusion, CrossmodalTransformer, TFRNetLike, LNLNLike)


@pytest.fixture(scope="module")
def data():
    return tiny_data()


@pytest.mark.parametrize("task", ["regression", "classification"])
@pytest.mark.parametrize("kind", BASELINES)
def test_all_parameters_take_part_in_every_step(kind, task):
    data = tiny_data(task=task)
    module = built(kind(**SMALL), data)
    trace = steps(module, data, 2)
    assert all(parameter.grad is not None for parameter in module.parameters()), "DDP would wait for it"
    assert all(torch.isfinite(torch.tensor(trace)))
    value = module(first_batch(data)).value
    assert value.shape == ((48,) if task == "regression" else (48, 3))


@pytest.mark.parametrize("kind", BASELINES)
def test_nothing_leaks_when_everything_is_erased(kind, data):
    module, batch = built(kind(**SMALL), data), with_missing(first_batch(data), 1.0)
    with torch.no_grad():
        value = module(batch).value
    assert bool(torch.isfinite(value).all())
    lengths = batch.modalities["text"].valid.sum(1)
    assert len(lengths.unique()) < len(lengths)
    for length in lengths.unique():
        assert float(value[lengths == length].max() - value[lengths == length].min()) < 1e-5


@pytest.mark.parametrize("kind", BASELINES)
def test_padding_and_order_do_not_matter(kind, data):
    module, batch = built(kind(**SMALL), data), with_missing(first_batch(data))
    batch.modalities["vision"].valid[3] = False  # a clip without any frame
    batch.modalities["vision"].available[3] = 0
    order = torch.randperm(len(batch))
    with torch.no_grad():
        wanted = module(batch).value
        assert torch.allclose(module(longer(batch, 9)).value, wanted, atol=1e-6)
        assert torch.allclose(module(shuffled(batch, order)).value, wanted[order], atol=1e-6)


@pytest.mark.parametrize("kind", BASELINES)
def test_trains_and_comes_back(kind, data, tmp_path):
    module: MultimodalModule = kind(**SMALL, optimization=Optimization(learning_rate=5e-3), seed=2)
    run = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, max_epochs=2,
    )  # fmt: skip
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    with torch.no_grad():
        assert torch.equal(loaded(first_batch(data)).value, module.eval()(first_batch(data)).value)
    assert loaded.seed == 2


def test_the_completeness_score_learns_the_observed_share(data):
    """LNLN's score is supervised: it must tell a whole text from one that is gone."""
    module, batch = built(LNLNLike(**SMALL, seed=0), data).train(), first_batch(data)
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    parts = [with_missing(batch, 0.0, kept) for kept in (("text", "audio", "vision"), ("audio", "vision"))]
    torch.manual_seed(0)
    for step in range(60):
        optimizer.zero_grad()
        module.losses(parts[step % 2])["completeness"].backward()
        optimizer.step()
    with torch.no_grad():
        whole, gone = (module.eval()._fused(module.vectors(part))[1].mean() for part in parts)
    assert float(whole) > float(gone) + 0.1  # 0.0 without its loss


def test_rebuilding_counts_erased_positions_only(data):
    module, batch = built(TFRNetLike(**SMALL), data), first_batch(data)
    assert "rebuilding" not in module.losses(batch)
    with torch.no_grad():
        assert float(module.losses(replace(batch, complete=batch))["rebuilding"]) == 0
        assert float(module.losses(with_missing(batch, 0.5))["rebuilding"]) > 0


def test_late_fusion_does_not_read_absent_modalities(data):
    module, batch = built(LateFusion(**SMALL), data), with_missing(first_batch(data), 0.0, ("text",))
    with torch.no_grad():
        wanted = module(batch).value
        module.encoders["audio"].norm.bias.add_(3.0)
        assert torch.equal(module(batch).value, wanted)
        module.encoders["text"].norm.bias.add_(3.0)
        assert not torch.allclose(module(batch).value, wanted)
