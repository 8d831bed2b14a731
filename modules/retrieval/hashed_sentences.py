"""The hashed encoder as a module of sentence-transformers.

`sentence_export` copies this file next to the exported weights, where it runs without Saccade. It does not import
sentence-transformers, because the location of the base class of modules differs between versions; only the methods
matter.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saccade.modules.retrieval.hashed_encoder import HashedEncoder

CONFIG, WEIGHTS = "hashed_encoder.json", "hashed_encoder.safetensors"


class HashedSentences(nn.Module):
    """Converts texts to vectors with a hashed encoder.

    Args:
        rows: Rows of the encoder's table.
        width: Features of a vector.
        characters: Length of the character n-grams.
    """

    def __init__(self, rows: int, width: int, characters: int) -> None:
        super().__init__()
        self.encoder = HashedEncoder(rows, width, characters)
        self.max_seq_length: int | None = None  # texts are never truncated

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Return the texts with the prompt in front of them; there is no tokenizer.

        Args:
            inputs: B texts.
            prompt: Text to put in front of each.
            **options: Options of other modules; ignored.
        """
        return {"texts": [f"{prompt or ''}{text}" for text in inputs]}

    def tokenize(self, texts: Sequence[str], **options: Any) -> dict[str, Any]:
        """Same as `preprocess`, under its name before sentence-transformers 5.3."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add `sentence_embedding` [B, width] to the features."""
        features["sentence_embedding"] = self.encoder(features["texts"])
        return features

    def get_embedding_dimension(self) -> int:
        """Return the number of features of a vector."""
        return self.encoder.width

    def get_sentence_embedding_dimension(self) -> int:
        """Same as `get_embedding_dimension`, under its older name."""
        return self.encoder.width

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """Write settings and weights.

        Args:
            output_path: An existing folder.
            *arguments: Arguments of other modules; ignored.
            **options: Options of other modules; ignored.
        """
        folder = Path(output_path)
        facts = {name: getattr(self.encoder, name) for name in ("rows", "width", "characters")}
        (folder / CONFIG).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.encoder.state_dict().items()}, folder / WEIGHTS)

    @staticmethod
    def load(input_path: str) -> HashedSentences:
        """Read what `save` wrote.

        Args:
            input_path: The folder.
        """
        folder = Path(input_path)
        module = HashedSentences(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        with torch.no_grad():
            module.encoder.load_state_dict(load_file(folder / WEIGHTS))
        return module
