"""The hashed encoder as sentence-transformers asks for a module; `sentence_export` puts this file beside the weights.

It imports nothing of sentence-transformers, whose class for such modules has moved from version to version; what counts
is the methods. Beside the weights it is a program of its own: it runs where Saccade is not installed.
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
    """Texts to vectors by a hashed encoder.

    Args:
        rows: Rows of its table.
        width: Features of a vector.
        characters: Length of its character n-grams.
    """

    def __init__(self, rows: int, width: int, characters: int) -> None:
        super().__init__()
        self.encoder = HashedEncoder(rows, width, characters)
        self.max_seq_length: int | None = None  # it reads a text to its end

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """The texts themselves, with the prompt before them; there is no tokenizer.

        Args:
            inputs: B texts.
            prompt: Text before each.
            **options: Of other modules; ignored.
        """
        return {"texts": [f"{prompt or ''}{text}" for text in inputs]}

    def tokenize(self, texts: Sequence[str], **options: Any) -> dict[str, Any]:
        """As `preprocess`, by the name that it had before sentence-transformers 5.3."""
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add `sentence_embedding` [B, width] to the features."""
        features["sentence_embedding"] = self.encoder(features["texts"])
        return features

    def get_embedding_dimension(self) -> int:
        """Features of a vector."""
        return self.encoder.width

    def get_sentence_embedding_dimension(self) -> int:
        """As `get_embedding_dimension`, by its older name."""
        return self.encoder.width

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:
        """Write settings and weights.

        Args:
            output_path: A folder that exists.
            *arguments: Of other modules; ignored.
            **options: Of other modules; ignored.
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
