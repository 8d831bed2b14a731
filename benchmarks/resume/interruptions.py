"""Small fits of every module, and a callback that interrupts one at a given batch."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

_SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
_RANKED = {
    "sources": ["asyncio", "email"], "target": "logging", "chunk_size": 16, "passes": 1, "batch_size": 4,
    "hard_negatives": 1,
}  # fmt: skip


def _pool(**settings: Any) -> dict[str, Any]:
    return {"class_path": "saccade.datamodules.ChunkPool", "init_args": _RANKED | settings}


def jobs(texts: str) -> dict[str, dict[str, Any]]:
    """Settings of a small fit for every module: about a second of training, in two epochs or more.

    Args:
        texts: Pattern of the text files for the language model.

    Returns:
        The settings by the name of the job.
    """
    llama = {"model_type": "llama", "num_key_value_heads": 1, "max_position_embeddings": 128, **_SMALL_TEXT}
    qwen = {
        "model_type": "qwen2_5_vl", "tie_word_embeddings": True,
        "text_config": {"num_key_value_heads": 1, "max_position_embeddings": 2048, **_SMALL_TEXT},
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 1},
    }  # fmt: skip
    videos = {
        "vocab_size": 512, "frames": 4, "height": 56, "width": 56, "patch_size": 14, "max_digits": 1, "scenes": 14,
        "validation_scenes": 2, "test_scenes": 1, "batch_size": 1,
    }  # fmt: skip
    clips = {"class_path": "saccade.datamodules.SyntheticSentiment", "init_args": {"clips": [56, 8, 8]}}
    retriever = {"rows": 512, "width": 8, "refresh_negatives_every": 3, "refresh_negatives_unit": "steps"}
    return {
        "language": {
            "model": {
                "class_path": "saccade.modules.LanguageModel",
                "init_args": {"config": {**llama, "attention_dropout": 0.2}, "sublayer_dropout": 0.2},
            },
            "data": {
                "class_path": "saccade.datamodules.TextCorpus",
                "init_args": {
                    "paths": [texts],
                    "vocab_size": 300,
                    "sequence_length": 32,
                    "batch_size": 4,
                    "validation_fraction": 0.2,
                    "test_fraction": 0.0,
                },
            },
        },
        "vision_language": {
            "model": {
                "class_path": "saccade.modules.VisionLanguageModel",
                "init_args": {"config": qwen, "slot_scenes": 1, "max_answer_tokens": 8, "video_dropout": 0.5},
            },
            "data": {"class_path": "saccade.datamodules.VideoCaptions", "init_args": videos},
        },
        "multimodal": {
            "model": {"class_path": "saccade.modules.T2DR", "init_args": {"width": 8, "heads": 2, "depth": 1}},
            "data": {
                "class_path": "saccade.datamodules.MultimodalSentiment",
                "init_args": {"generator": clips, "batch_size": 4},
            },
        },
        "retriever": {
            "model": {"class_path": "saccade.modules.Retriever", "init_args": retriever},
            "data": _pool(batch_size=16),
        },
        "reranker": {
            "model": {"class_path": "saccade.modules.Reranker", "init_args": {"width": 8}},
            "data": _pool(batch_size=16),
        },
        "trait": {
            "model": {"class_path": "saccade.modules.Reranker", "init_args": {"width": 8}},
            "data": _pool(),
            "trainer": {
                "max_epochs": -1,
                "limit_val_batches": 0,
                "callbacks": [{"class_path": "saccade.callbacks.TraitSelection", "init_args": {"budget": 4}}],
            },
        },
    }


def write_job(folder: Path, job: str, num_workers: int = 0, accumulation: int = 2) -> Path:
    """Write the settings of a job, and the texts it reads.

    Args:
        folder: Where to write them.
        job: A name of `jobs`.
        num_workers: Loader processes.
        accumulation: Batches of an optimizer step.

    Returns:
        The file of settings.
    """
    texts = folder / "texts"
    if not texts.exists():
        texts.mkdir(parents=True)
        for number in range(12):
            words = " ".join(f"w{(number * 31 + place * place) % 97}" for place in range(100))
            (texts / f"{number:02d}.txt").write_text(words)
    settings = jobs(f"{texts}/*.txt")[job]
    settings["data"]["init_args"]["num_workers"] = num_workers
    common = {
        "max_epochs": 2, "accelerator": "cpu", "accumulate_grad_batches": accumulation, "val_check_interval": 6,
        "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    if job == "trait":
        common |= {"val_check_interval": None, "accumulate_grad_batches": 1}
    settings["trainer"] = common | settings.get("trainer", {})
    settings |= {"seed_everything": 3, "save_every": 2}
    path = folder / f"{job}-{num_workers}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


class Interrupt(Callback):
    """Send a signal to the process that trains.

    Args:
        kind: ``SIGTERM``, ``SIGINT`` (Ctrl-C) or ``SIGKILL``.
        batch: Number of the batch, over all epochs, after which the signal is sent.
        delay: Seconds to wait before it is sent, while the training goes on.
    """

    def __init__(self, kind: str, batch: int, delay: float = 0.0) -> None:
        self.number, self.batch, self.delay = signal.Signals[kind], batch, delay
        self._seen = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and send the signal."""
        self._seen += 1
        if self._seen == self.batch and self.delay:
            threading.Timer(self.delay, os.kill, (os.getpid(), self.number)).start()
        elif self._seen == self.batch:
            os.kill(os.getpid(), self.number)
