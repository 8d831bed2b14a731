"""Settings of the engine: eager forwards or CUDA graphs, prefill chunks, capacity of the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

from saccade.common.checks import check_count, check_switch

EngineKind = Literal["auto", "eager", "graph"]
"""``eager`` calls the Hugging Face modules; ``graph`` replays captured steps; ``auto`` chooses."""

KINDS: tuple[EngineKind, ...] = ("auto", "eager", "graph")


@dataclass
class EngineConfig:
    """Settings of a decoder's engine. They do not change results, except by rounding.

    Args:
        kind: ``eager`` calls the model's modules for every step. ``graph`` keeps lengths, positions and tree masks on
            the device and replays every step as one CUDA graph, with fused kernels for layers shaped as those of Llama,
            Gemma 3 or Qwen3-MoE, also with LoRA; the decoder keeps the buffers between calls. ``auto`` is ``graph`` for
            models on one CUDA device without hooks, and ``eager`` otherwise. If a step cannot be captured, decoding
            continues eagerly with a warning.
        prefill_chunk: Longer prompts are read in chunks of this many tokens, which limits memory.
        capacity: Slots of each row in tokens, at least the longest text plus the widest step; ``None`` allocates what
            is needed.
        check_model: Compare the logits of a model whose class is not covered by the tests with those of its own
            forward, on a few tokens at its first use, and refuse the model if they differ by more than rounding.

    Raises:
        ValueError: A setting outside its range.
    """

    kind: EngineKind = "auto"
    prefill_chunk: int = 8192
    capacity: int | None = None
    check_model: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"engine.kind must be one of {', '.join(KINDS)}, got {self.kind!r}: choose one.")
        check_count("engine.prefill_chunk", self.prefill_chunk)
        check_switch("engine.check_model", self.check_model)
        if self.capacity is not None:
            check_count("engine.capacity", self.capacity)

    @classmethod
    def of(cls, given: EngineConfig | EngineKind | Mapping[str, Any]) -> EngineConfig:
        """Settings from an ``EngineConfig``, from the name of a kind, or from a mapping, as read from YAML.

        Raises:
            ValueError: The mapping has an unknown key, or a setting is outside its range.
        """
        if isinstance(given, Mapping):
            names = {item.name for item in fields(cls)}
            if unknown := sorted(set(given) - names):
                raise ValueError(
                    f"engine must have only the settings {', '.join(sorted(names))}, got {unknown[0]!r}: rename or "
                    "remove it."
                )
            return cls(**given)
        return given if isinstance(given, EngineConfig) else cls(given)

    def pieces(self, known: int, lengths: Sequence[int], *, at_every_end: bool = False) -> list[tuple[int, int]]:
        """Where the pieces begin and end in which prompts are read.

        Args:
            known: Tokens that are not read again.
            lengths: Tokens of every prompt.
            at_every_end: Whether a piece ends where a prompt ends.
        """
        longest = max(lengths)
        edges = {*range(known, longest, self.prefill_chunk), longest, *(lengths if at_every_end else ())}
        return list(pairwise(sorted(edges)))
