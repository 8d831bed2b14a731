"""The decoders that an evaluation measures: the baseline, transformers' own `generate`, and those that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

from torch import nn

from saccade.callbacks.decoding.transformers_generate import TransformersGenerate
from saccade.inference import Autoregressive, CacheCompressor, Decoder, Sampling

BASELINE = "autoregressive"
"""Name of the baseline's row, which the others are compared with."""
TRANSFORMERS = "transformers"
"""Name of the row of transformers' own ``generate``."""


def measured_decoders(decoders: Mapping[str, Decoder], baseline: bool, transformers: bool) -> dict[str, Decoder]:
    """Check the decoders of an evaluation, and copy them.

    Args:
        decoders: Decoders by the name of their row.
        baseline: Whether the autoregressive baseline is measured.
        transformers: Whether transformers' own ``generate`` is measured.

    Returns:
        Decoders by name, in the order in which they are measured; the baseline is first.

    Raises:
        ValueError: A name cannot be logged or has another meaning, a value is no decoder, or there is nothing to
            measure.
    """
    for name, decoder in decoders.items():
        _check_name("decoders", name)
        if not isinstance(decoder, Decoder):
            raise ValueError(
                f"decoders.{name} must be a saccade.inference.Decoder, got {type(decoder).__name__}: name one by its"
                " class_path."
            )
    if baseline and not isinstance(decoders.get(BASELINE, Autoregressive()), Autoregressive):
        raise ValueError(
            f"decoders.{BASELINE} must be Autoregressive, got {type(decoders[BASELINE]).__name__}: choose another name,"
            " or set baseline to false."
        )
    if baseline and BASELINE in decoders and decoders[BASELINE].compressor is not None:
        raise ValueError(
            f"decoders.{BASELINE} must keep the full cache, got {type(decoders[BASELINE].compressor).__name__}: move"
            " the compressor to compressors, or choose another name."
        )
    if transformers and TRANSFORMERS in decoders:
        raise ValueError(
            f"decoders must not name a decoder {TRANSFORMERS} where transformers is true, got one: choose another name."
        )
    if not decoders and not baseline and not transformers:
        raise ValueError(
            "decoders must name a decoder if baseline is false, got none: add one, or set baseline to true."
        )
    found: dict[str, Decoder] = {BASELINE: Autoregressive()} if baseline else {}
    if transformers:
        found[TRANSFORMERS] = TransformersGenerate()
    return found | {name: decoder.independent() for name, decoder in decoders.items()}


def compressed_pairs(
    decoders: Mapping[str, Decoder], compressors: Mapping[str, CacheCompressor]
) -> dict[tuple[str, str], Decoder]:
    """Give every decoder a copy with every compressor; transformers' own ``generate`` has none.

    Args:
        decoders: The measured decoders.
        compressors: Compressors by the second part of their rows' names, ``decoder+compressor``.

    Returns:
        By the names of decoder and compressor, the decoder on the compressed cache; those of a compressor one after the
        other.

    Raises:
        ValueError: A name cannot be logged or is taken, a value is no compressor, or a pair cannot be combined.
    """
    able = {name: decoder for name, decoder in decoders.items() if not isinstance(decoder, TransformersGenerate)}
    for name, compressor in compressors.items():
        _check_name("compressors", name)
        if not isinstance(compressor, CacheCompressor):
            raise ValueError(
                f"compressors.{name} must be a saccade.inference.CacheCompressor, got {type(compressor).__name__}: name"
                " one by its class_path."
            )
        if taken := [other for other in able if f"{other}+{name}" in decoders]:
            raise ValueError(
                f"decoders must not have the name of a pair, got {taken[0]}+{name}: choose another name for it or for"
                f" compressors.{name}."
            )
    for name, decoder in able.items() if compressors else ():
        if decoder.compressor is not None:
            raise ValueError(
                f"decoders.{name} must have no compressor of its own where compressors are given, got "
                f"{type(decoder.compressor).__name__}: move it to compressors, or leave one of the two out."
            )
        if not is_dataclass(decoder) or "compressor" not in {item.name for item in fields(decoder)}:
            raise ValueError(
                f"decoders.{name} must have a setting compressor to be combined with one, got {type(decoder).__name__}"
                " without it: derive it from EngineDecoder, or measure it without compressors."
            )
    return {
        (name, kind): replace(decoder, compressor=compressor).independent()  # type: ignore[type-var]
        for kind, compressor in compressors.items()
        for name, decoder in able.items()
    }


def check_compressors(decoders: Mapping[str, Decoder], model: nn.Module) -> None:
    """Refuse compressors that cannot work on a model, before anything is decoded.

    Raises:
        ValueError: Names the decoder's row, and the reason.
    """
    for name, decoder in decoders.items():
        if decoder.compressor is not None:
            try:
                decoder.compressor.check(model)
            except ValueError as error:
                raise ValueError(f"decoders.{name} ({type(decoder).__name__}) cannot be measured: {error}") from error


def references(decoders: Mapping[str, Decoder], baseline: bool, sampling: Sampling | None) -> dict[str, str]:
    """Which row's text every lossless decoder has to write, greedy or sampled with noise that decoders share.

    With a compressed cache it is that of the first autoregressive decoder with the same compressor. That of the full
    cache is another text, whatever the decoder.

    Args:
        decoders: The measured decoders.
        baseline: Whether the first of them is the baseline.
        sampling: How tokens are drawn; transformers' own ``generate`` knows no such noise.

    Returns:
        The name of that row by the decoder's name; without decoders whose texts cannot be compared.
    """
    found: dict[str, str] = {}
    plain: list[tuple[str, CacheCompressor | None]] = []
    if sampling is not None and sampling.coupling != "gumbel":
        return found
    for name, decoder in decoders.items():
        autoregressive = isinstance(decoder, Autoregressive) and decoder.lossless
        if autoregressive and (decoder.compressor is not None or (baseline and name == BASELINE)):
            plain.append((name, decoder.compressor))
        reference = next((other for other, compressor in plain if compressor == decoder.compressor), None)
        if reference is not None and (sampling is None or not isinstance(decoder, TransformersGenerate)):
            found[name] = reference
    return found


def _check_name(setting: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
        raise ValueError(f"{setting} must have names that can be logged, got {name!r}: use letters, digits and _.+-.")
