"""Export an encoder as a folder that sentence-transformers loads. The package itself is not needed for the export."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from saccade.common.files import replacing_folder
from saccade.modules.language.export import merged_state_dict, write_weights
from saccade.modules.retrieval import hashed_encoder, hashed_sentences
from saccade.modules.retrieval.hashed_encoder import HashedEncoder
from saccade.modules.retrieval.hashed_sentences import HashedSentences
from saccade.modules.retrieval.pretrained_encoder import PretrainedEncoder
from saccade.retrieval import words

# class names that sentence-transformers 2 to 6 understand
_TRANSFORMER, _POOLING, _NORMALIZE = (f"sentence_transformers.models.{name}" for name in
                                      ("Transformer", "Pooling", "Normalize"))  # fmt: skip


def write_sentence_transformer(encoder: HashedEncoder | PretrainedEncoder, folder: Path, write: bool = True) -> None:
    """Write an encoder so that `SentenceTransformer(folder)` computes the same vectors.

    A pretrained encoder is written as a transformer, a pooling and, if its vectors have length 1, a normalization, with
    LoRA merged. A hashed encoder is written as a module together with its source code, for which sentence-transformers
    6 needs `trust_remote_code=True`.

    Args:
        encoder: The encoder; it is not changed.
        folder: Target folder. An existing one is replaced; it is never left half written.
        write: Whether this rank writes; under ZeRO-3 the other ranks take part to gather the weights.

    Raises:
        ValueError: The folder cannot be written.
    """
    if isinstance(encoder, PretrainedEncoder):
        state = merged_state_dict(encoder.model, write)
        if write:
            with replacing_folder(folder) as unfinished:
                write_weights(encoder.model, state, unfinished)
                encoder.tokenizer.save_pretrained(unfinished)
                _describe(unfinished, _pretrained_modules(encoder, unfinished), encoder.normalize)
    elif write:
        with replacing_folder(folder) as unfinished:
            _write_hashed(encoder, unfinished)


def _pretrained_modules(encoder: PretrainedEncoder, folder: Path) -> list[tuple[str, str]]:
    """Write the settings of each module, and return their folders and types."""
    limits = {"max_seq_length": encoder.max_length, "do_lower_case": False}
    _write(folder / "sentence_bert_config.json", limits)
    pooling = {
        "word_embedding_dimension": encoder.width,
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
    }
    _write(folder / "1_Pooling" / "config.json", pooling)
    modules = [("", _TRANSFORMER), ("1_Pooling", _POOLING)]
    if encoder.normalize:
        (folder / "2_Normalize").mkdir()
        modules.append(("2_Normalize", _NORMALIZE))
    return modules


def _write_hashed(encoder: HashedEncoder, folder: Path) -> None:
    module = HashedSentences(encoder.rows, encoder.width, encoder.characters)
    module.encoder.load_state_dict(copy.deepcopy(encoder.state_dict()))
    module.save(str(folder))
    programs = (words, hashed_encoder, hashed_sentences)
    for program in programs:
        text = inspect.getsource(program)
        for other in programs:  # they lie beside each other there
            text = text.replace(f"from {other.__name__} import", f"from .{Path(_file(other)).stem} import")
        (folder / _file(program)).write_text(text, encoding="utf-8")
    _describe(folder, [("", f"{Path(_file(hashed_sentences)).stem}.{HashedSentences.__name__}")], normalized=True)


def _describe(folder: Path, modules: list[tuple[str, str]], normalized: bool) -> None:
    """Write the list of modules, and the similarity of vectors."""
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine" if normalized else "dot"})


def _file(module: ModuleType) -> str:
    return f"{module.__name__.rpartition('.')[2]}.py"


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
