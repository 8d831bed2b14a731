"""The decoders that an evaluation measures: the baseline, transformers' own `generate`, and those that it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping

from saccade.callbacks.decoding.transformers_generate import TransformersGenerate
from saccade.inference import Autoregressive, Decoder, Sampling

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
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
            raise ValueError(
                f"decoders must have names that can be logged, got {name!r}: use letters, digits and _.+-."
            )
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


def compares(decoder: Decoder, sampling: Sampling | None) -> bool:
    """Whether a lossless decoder writes the baseline's text: greedy, or sampled with noise that decoders share.

    With a compressed cache it writes that of the compressed cache.

    Args:
        decoder: The decoder; transformers' own ``generate`` knows no such noise.
        sampling: How tokens are drawn.
    """
    if decoder.compressor is not None:
        return False
    return sampling is None or (sampling.coupling == "gumbel" and not isinstance(decoder, TransformersGenerate))
