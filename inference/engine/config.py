"""How a decoder's forwards run: eagerly, or as replayed CUDA graphs; how long prompts are read; how much fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from saccade.common.checks import check_count, check_switch

EngineKind = Literal["auto", "eager", "graph"]
"""``eager`` runs the Hugging Face modules as they are; ``graph`` replays captured steps; ``auto`` chooses."""

KINDS: tuple[EngineKind, ...] = ("auto", "eager", "graph")


@dataclass
class EngineConfig:
    """Settings of the pool that a decoder stands on. Its results do not depend on them beyond rounding.

    Args:
        kind: ``eager`` calls the model's own modules for every step. ``graph`` keeps lengths, positions and tree masks
            on the device and replays every step of a known width as one CUDA graph, with fused kernels for Llama,
            Qwen2, Qwen3, Qwen2.5-VL and LLaVA-OneVision; its buffers stay with the decoder from call to call. ``auto``
            is ``graph`` for those models on one CUDA device, and ``eager`` for everything else. Where a step cannot be
            captured, both go on eagerly and say so once.
        prefill_chunk: Prompts longer than this are read in pieces of this many tokens, which bounds memory.
        capacity: Slots of each row in tokens, at least the longest text and the widest step; ``None`` is just enough.
        check_model: Compare the logits of a model whose class the tests do not cover with the engine's, on a few tokens,
            the first time that it is used, and refuse the model where they differ beyond rounding.

    Raises:
        ValueError: A setting outside its range.
    """

    kind: EngineKind = "auto"
    prefill_chunk: int = 8192
    capacity: int | None = None
    check_model: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"engine.kind must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        check_count("engine.prefill_chunk", self.prefill_chunk)
        check_switch("engine.check_model", self.check_model)
        if self.capacity is not None:
            check_count("engine.capacity", self.capacity)

    @classmethod
    def of(cls, given: EngineConfig | EngineKind | Mapping[str, Any]) -> EngineConfig:
        """Settings from themselves, from the name of a kind, or from a mapping, as YAML hands them over.

        Raises:
            ValueError: The mapping has a key that is no setting.
        """
        if isinstance(given, Mapping):
            known = {item.name for item in fields(cls)}
            if unknown := sorted(set(given) - known):
                raise ValueError(f"engine knows the settings {', '.join(sorted(known))}, got {unknown[0]!r}.")
            return cls(**given)
        return given if isinstance(given, EngineConfig) else cls(given)
