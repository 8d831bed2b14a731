"""A Retriever that mines its own negatives while it is trained: when, what, and that a resumed run is the same run."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from saccade.callbacks import TraitSelection
from saccade.datamodules.retrieval.chunk_pool import ChunkPool
from saccade.datamodules.retrieval.files import Pair, RetrievalTask
from saccade.modules.retrieval.mined_negatives import MinedNegatives
from saccade.modules.retrieval.retriever import Retriever
from tests.support.retrieval_files import write_beir, write_pairs

THINGS = ("apple", "river", "train", "cloud", "stone", "tiger", "violin", "window", "garden", "bridge")


@pytest.fixture
def pool(tmp_path):
    for colour in ("red", "green"):
        pairs = [
            Pair(f"where is {colour} {thing}{place}", f"{thing} of {colour} lies at place{place * 3 % 7} behind it", 1)
            for place in range(7)
            for thing in THINGS
        ]
        write_pairs(pairs, tmp_path / f"{colour}.jsonl")
    documents = {f"d{place}": f"white {thing}" for place, thing in enumerate(THINGS)}
    queries = {f"q{place}": f"find {thing}" for place, thing in enumerate(THINGS)}
    judged = {f"q{place}": {f"d{place}": 1} for place in range(10)}
    write_beir(RetrievalTask("white", documents, queries, judged), tmp_path / "white")
    files = [str(tmp_path / "red.jsonl"), str(tmp_path / "green.jsonl")]
    return lambda: ChunkPool(files, str(tmp_path / "white"), chunk_size=10, batch_size=28, dev_fraction=0.5)


class Watch(Callback):
    """Notes the epoch and step of each refresh, what was mined, and what a batch then trains on."""

    def __init__(self):
        self.moments, self.mined, self.texts = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = {name: rows.clone() for name, rows in pl_module.negatives.state_dict().items()}
        if not self.mined or any(not torch.equal(self.mined[-1][name], found[name]) for name in found):
            self.moments.append((trainer.current_epoch, trainer.global_step - 1))
            self.mined.append(found)
            for name, asked in pl_module.negatives.answers.items():
                documents = pl_module.negatives.documents[name]
                for query, right in asked.items():
                    self.texts.append((pl_module.negatives.of(name, query), {documents[place] for place in right}))


def fit(pool, folder, epochs, ckpt_path=None, more=(), accumulate=1, **settings):
    seed_everything(0, verbose=False)
    module, watch = Retriever(rows=512, width=8, learning_rate=3e-2, mined_negatives=4, **settings), Watch()
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        limit_val_batches=0, enable_checkpointing=bool(more), default_root_dir=folder, callbacks=[watch, *more],
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, pool, ckpt_path=ckpt_path)
    return module, watch, trainer


@pytest.mark.parametrize(
    ("every", "unit", "moments"),
    [
        (1, "epochs", [(0, 0), (1, 5), (2, 10)]),
        (2, "epochs", [(0, 0), (2, 10)]),
        (7, "steps", [(0, 0), (1, 7), (2, 14)]),
    ],
)
def test_negatives_follow_the_encoder_and_never_answer(pool, tmp_path, every, unit, moments):
    _, watch, trainer = fit(pool(), tmp_path, 3, refresh_negatives_every=every, refresh_negatives_unit=unit)
    assert trainer.global_step == 15
    assert watch.moments == moments
    assert all(len(texts) == 4 and not right & set(texts) for texts, right in watch.texts)


def test_a_step_of_several_batches_mines_once(pool, tmp_path, monkeypatch):
    refreshed = []
    whole = MinedNegatives.refresh
    monkeypatch.setattr(MinedNegatives, "refresh", lambda self, *rest: refreshed.append(whole(self, *rest)))
    settings = {"refresh_negatives_every": 1, "refresh_negatives_unit": "steps"}
    _, _, trainer = fit(pool(), tmp_path, 2, accumulate=2, **settings)
    assert len(refreshed) == trainer.global_step == 6


def test_they_change_what_is_learned(pool, tmp_path):
    mined = fit(pool(), tmp_path, 1, refresh_negatives_every=1)[0]
    seed_everything(0, verbose=False)
    plain = Retriever(rows=512, width=8, learning_rate=3e-2)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        limit_val_batches=0, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(plain, pool())
    assert plain.negatives is None
    assert not torch.allclose(mined.encoder.table, plain.encoder.table, atol=1e-4)


@pytest.mark.parametrize("steps", [5, 8])  # at the end of an epoch, and within one
@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_a_resumed_run_is_the_same_run(pool, tmp_path, unit, steps):
    settings = {"refresh_negatives_every": 2 if unit == "epochs" else 7, "refresh_negatives_unit": unit}
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1)
    whole, watch, _ = fit(pool(), tmp_path, 4, more=[keep], **settings)
    path = tmp_path / f"step={steps}.ckpt"
    saved = torch.load(path, weights_only=True)["mined_negatives"]
    place = [step for _, step in watch.moments if step < steps].index(saved["at"]) if unit == "steps" else saved["at"]
    assert all(torch.equal(watch.mined[place][name], rows) for name, rows in saved["found"].items())
    again, later, _ = fit(pool(), tmp_path, 4, ckpt_path=path, **settings)
    assert later.moments[-1] == watch.moments[-1]
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    module = Retriever.load_from_checkpoint(path, weights_only=True)
    assert module.negatives is None


def test_what_does_not_fit_is_refused(pool, tmp_path):
    with pytest.raises(
        ValueError, match=r"^refresh_negatives_every must be null unless the data are a ChunkPool, got 1"
    ):
        fit(DataLoader([{}]), tmp_path, 1, refresh_negatives_every=1)
    trainer = Trainer(
        max_epochs=-1, logger=False, limit_val_batches=0, accelerator="cpu", callbacks=[TraitSelection(1)],
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^refresh_negatives_every must be null for TraitSelection, got 1"):
        trainer.fit(Retriever(rows=512, width=8, refresh_negatives_every=1), pool())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh_negatives_every": 0}, "refresh_negatives_every must be at least 1, got 0"),
        ({"refresh_negatives_unit": "hours"}, "refresh_negatives_unit must be epochs or steps, got 'hours'"),
        ({"mined_negatives": 0}, "mined_negatives must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match="^" + message):
        Retriever(**settings)
