"""A model's own answers as training data, with which it learns to work without some of its sub-layers.

    python -m benchmarks.decoding.own_answers --model CHAT_MODEL --output answers.jsonl
    saccade fit --config benchmarks/decoding/skip_training.yaml --model.path CHAT_MODEL --data.answers answers.jsonl
    python -m benchmarks.decoding.layer_skip --model runs/skip-training/latest/model --label "300 steps ..." --chat

The first command answers the built-in prompts several times, without the 16 that are measured later, by sampling; a
line is ``{"tokens": [...]}``, prompt and answer in the chat form of the model. The second trains adapters on them with
sub-layer dropout: nothing new is to be learnt, so that the whole model should stay what it is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from rich.progress import track

from benchmarks.decoding.coupling import loaded
from benchmarks.rows import existing, model_place, positive
from saccade.callbacks.layer_skip.saved_model import COMPARED_PROMPTS, chat_prompts
from saccade.common.files import write_text
from saccade.datamodules.loaders import BatchLoader, BatchSampler, PackedSequences
from saccade.datamodules.text.tokenization import load_tokenizer
from saccade.inference import Autoregressive, Sampling


class OwnAnswers(LightningDataModule):
    """Answers that this benchmark wrote, joined and cut into sequences; the last twentieth is for validation.

    Args:
        answers: The file.
        tokenizer: Folder of the model; the command fills in the `path` of the module.
        sequence_length: Tokens of each sequence.
        batch_size: Sequences of each batch.
        seed: Seed of the order of the answers and of the sequences.
    """

    def __init__(
        self,
        answers: str,
        tokenizer: str | None = None,
        sequence_length: int = 512,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.answers, self.source, self.seed = answers, tokenizer, seed
        self.sequence_length, self.batch_size = sequence_length, batch_size

    def setup(self, stage: str | None = None) -> None:
        """Read the answers.

        Args:
            stage: Not used.
        """
        self.tokenizer = load_tokenizer(self.source or self.trainer.lightning_module.path)  # type: ignore[union-attr,arg-type]
        texts = [json.loads(line)["tokens"] for line in Path(self.answers).read_text().splitlines()]
        order = np.random.default_rng(self.seed).permutation(len(texts))
        stream = np.array([token for at in order for token in texts[at]], dtype=np.int32)
        cut = len(stream) - max(len(stream) // 20, self.sequence_length)
        self._parts = [PackedSequences(part, self.sequence_length) for part in (stream[:cut], stream[cut:])]

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches."""
        return self._loader(0)

    def val_dataloader(self) -> BatchLoader:
        """Every validation sequence once."""
        return self._loader(1)

    def _loader(self, part: int) -> BatchLoader:
        sequences, size = self._parts[part], self.batch_size
        sampler = BatchSampler(len(sequences), size, rank=0, world_size=1, train=part == 0, seed=self.seed)
        return BatchLoader(sequences, sampler, 0, pin_memory=False)


def main() -> None:
    """Writes the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_place, required=True, help="folder of a chat model")
    parser.add_argument("--output", required=True, help="the file to write")
    parser.add_argument(
        "--files", type=existing, nargs="+", metavar="FILE", help="of prompts; default: the built-in set"
    )
    parser.add_argument("--prompts", type=positive, default=64, help="most prompts")
    parser.add_argument("--samples", type=positive, default=16, help="answers to each prompt, decoded together")
    parser.add_argument("--new-tokens", type=positive, default=256)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32")
    chosen = parser.parse_args()
    model = loaded(
        chosen.model, chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32"), chosen.device
    )
    without = COMPARED_PROMPTS if chosen.files is None else 0
    lines = []
    for at, prompt in enumerate(
        track(chat_prompts(chosen.model, chosen.files, chosen.prompts, without=without), description="answering")
    ):
        rows = list(range(at * chosen.samples, (at + 1) * chosen.samples))
        out = Autoregressive().generate(
            model,
            [prompt.tolist()] * chosen.samples,
            max_new_tokens=chosen.new_tokens,
            sampling=Sampling(temperature=chosen.temperature, seed=0, rows=rows),
        )
        lines += [json.dumps({"tokens": prompt.tolist() + tokens}) for tokens in out.tokens]
    write_text(Path(chosen.output), "\n".join(lines) + "\n")
    print(f"{len(lines)} answers are in {chosen.output}")


if __name__ == "__main__":
    main()
