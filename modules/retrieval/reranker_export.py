"""Export a reranker: a folder for transformers and sentence-transformers, or the small network of features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from saccade.common.files import replacing_folder
from saccade.modules.language.export import gathered, merged_state_dict, write_weights
from saccade.modules.retrieval.cross_encoders import LogitScorer, SequenceToSequenceScorer
from saccade.modules.retrieval.cross_features import NAMES, FeatureScorer

_WEIGHTS, _SETTINGS = "model.safetensors", "reranker.json"


def write_reranker(
    scorer: FeatureScorer | LogitScorer | SequenceToSequenceScorer,
    settings: dict[str, Any],
    folder: Path,
    write: bool = True,
) -> None:
    """Write a scorer, and `reranker.json` with what `read_reranker` needs.

    A Hugging Face model is written with its tokenizer, with LoRA merged. A scorer of features is written as the weights
    of its network; the features themselves come from the documents of a collection.

    Args:
        scorer: The scorer; it is not changed.
        settings: Arguments of `Reranker` that build the same scorer from the folder.
        folder: Target folder. An existing one is replaced; it is never left half written.
        write: Whether this rank writes; under ZeRO-3 the other ranks take part to gather the weights.

    Raises:
        ValueError: The folder cannot be written.
    """
    if isinstance(scorer, FeatureScorer):
        with gathered(scorer.parameters()):
            state = {name: value.detach().cpu().contiguous() for name, value in scorer.state_dict().items()}
        settings = {**settings, "features": list(NAMES)}
    else:
        state = merged_state_dict(scorer.model, write)
    if not write:
        return
    with replacing_folder(folder) as unfinished:
        if isinstance(scorer, FeatureScorer):
            save_file(state, unfinished / _WEIGHTS)
        else:
            write_weights(scorer.model, state, unfinished)
            scorer.tokenizer.save_pretrained(unfinished)
        (unfinished / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_reranker(folder: Path) -> dict[str, Any]:
    """Read the settings of an exported reranker.

    Args:
        folder: A folder that `write_reranker` wrote.

    Returns:
        Arguments of `Reranker`, without the path.

    Raises:
        ValueError: The folder is no exported reranker, or its features are not those of this version.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"folder must contain {_SETTINGS}, got {folder}: give the folder that fit or `saccade export` wrote."
        ) from error
    if settings.pop("features", list(NAMES)) != list(NAMES):
        raise ValueError(
            f"features of the reranker in {folder} must be {', '.join(NAMES)}, got others: train it again."
        )
    return settings


def read_features(scorer: FeatureScorer, folder: Path) -> None:
    """Load the weights of an exported scorer of features.

    Args:
        scorer: The scorer to change.
        folder: A folder that `write_reranker` wrote.
    """
    scorer.load_state_dict(load_file(folder / _WEIGHTS))
