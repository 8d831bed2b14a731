"""The contract of a compressor: from what is seen of a prompt, the plan of what its cache keeps."""

# No postponed annotations here: jsonargparse resolves inherited annotations in the module of the subclass.
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from saccade.common.checks import check_count, check_positive, check_share
from saccade.inference.compression.allocation import check_enough, split_evenly, total_budget
from saccade.inference.compression.merging import Merging
from saccade.inference.compression.observation import Observation
from saccade.inference.compression.precision import FIRST, GROUP, Bits, check_bits, check_width
from saccade.inference.compression.probation import Probation
from saccade.inference.huggingface.models import head_widths, layer_kinds

Representative = Literal["mean", "minmax"]


@dataclass(frozen=True)
class Plan:
    """What the cache keeps of one prompt.

    A static head keeps a set of positions for good. A dynamic head keeps its pins on the device and all of the prompt
    on the host, in chunks, of which it holds some on the device. No chunk contains both pins and other positions of a
    dynamic head: chunks of pins are never fetched, so no position counts twice
    (:func:`saccade.inference.compression.chunks.pinned_chunks`).

    Args:
        kept: For each layer and KV head ``[kept]`` int64, ascending: positions whose keys and values stay on the
            device, the whole set of a static head, the pins of a dynamic one. On the device of the layer's scores.
        slots: For each layer and KV head the number of chunks that it holds on the device; 0 is a static head.
        chunk: Most tokens of a chunk, so of a slot; 0 without dynamic heads.
        bounds: ``[chunks + 1]`` int64 on the CPU, ascending from 0 to the prompt's length: where chunks begin. No chunk
            contains tokens of two images, of two frames, or of image and text. ``None`` without dynamic heads.
        representative: What stands for the keys of a chunk: their mean, or their smallest and largest values
            (:func:`saccade.inference.compression.chunks.representatives`).
        merged: How static heads average deleted keys and values into kept ones; ``None`` if they drop them.
        probation: How static heads are tried; ``None`` if they are trusted. It needs ``chunk`` and ``bounds``.
        host_bits: Bits of the numbers of chunks in host memory
            (:mod:`saccade.inference.compression.precision`); 16 is the model's precision.
        kept_bits: Bits of the numbers of ``kept`` tokens, in groups of 32. The first four of a head, and the last ones,
            which do not fill a group, stay as they are.
    """

    kept: list[list[Tensor]]
    slots: list[list[int]]
    chunk: int = 0
    bounds: Tensor | None = None
    representative: Representative = "mean"
    merged: Merging | None = None
    probation: Probation | None = None
    host_bits: Bits = 16
    kept_bits: Bits = 16

    def packed(self, layer: int, head: int) -> int:
        """How many of the kept tokens of a head are packed in few bits: whole groups, behind the first four."""
        return 0 if self.kept_bits == 16 else max(0, len(self.kept[layer][head]) - FIRST) // GROUP * GROUP

    @property
    def entries(self) -> int:
        """(head, token) entries that the device has room for: kept positions, and slots of whole chunks."""
        kept = sum(len(positions) for layer in self.kept for positions in layer)
        return kept + self.chunk * sum(sum(layer) for layer in self.slots)


class CacheCompressor(ABC):
    """Decides what the cache of a prompt keeps; a subclass is a dataclass of settings.

    It sees the attention of a few rows (:class:`Observation`), which is observed while the prompt is read, and decides
    once, at the end of the prefill. Tokens that are generated later are not its business.
    """

    budget: float = 0.1
    """Share of the (head, token) entries of the prompt that the plan may hold on the device."""

    window: int = 64
    """Most rows that are observed; 0 for methods that need no attention."""

    alive_share: float = 0.01
    """A key counts as alive for a row if it has at least this share of the row's largest attention."""

    host_bits: Bits = 16
    """Bits of the numbers of chunks in host memory; 16 is the model's precision."""

    kept_bits: Bits = 16
    """Bits of the numbers of tokens that stay on the device for good."""

    dynamic: ClassVar[bool] = False
    """Whether a plan may have dynamic heads."""

    @property
    def looks_twice(self) -> bool:
        """Whether the attention of the last observed rows is wanted apart (:attr:`Observation.late`)."""
        return False

    def __post_init__(self) -> None:
        """Checks the settings that every compressor has.

        Raises:
            ValueError: A setting outside its range.
        """
        check_count("window", self.window, least=0)
        for name in ("budget", "alive_share"):
            check_share(name, getattr(self, name))
            check_positive(name, getattr(self, name))
        check_bits("host_bits", self.host_bits)
        check_bits("kept_bits", self.kept_bits)

    def check(self, model: nn.Module | None = None) -> None:
        """Checks that the method can work on a model, before there is any prompt.

        Args:
            model: The model; ``None`` checks only what does not depend on it.

        Raises:
            ValueError: A layer does not attend to the whole prefix, or heads of an odd width are to have 4 bits.
        """
        kinds = set() if model is None else set(layer_kinds(model)) - {"full_attention"}
        if kinds:
            raise ValueError(
                f"model must have full attention in every layer for {type(self).__name__}, got "
                f"{type(model).__name__} with {', '.join(sorted(kinds))}: choose another model, or no compressor."
            )
        for width in () if model is None else head_widths(model):
            check_width(width, self.host_bits, self.kept_bits)

    def total(self, seen: Observation) -> int:
        """Entries that a plan for a prompt may hold.

        Raises:
            BudgetTooSmallError: They are fewer than the prompt has KV heads.
        """
        check_enough(self.budget, seen.units, seen.units, seen.length, "leave the compressor out")
        return total_budget(self.budget, seen.units, seen.length)

    def even_caps(self, seen: Observation) -> list[int]:
        """The budget in as many parts as there are KV heads, which differ by one entry at most."""
        return split_evenly(self.total(seen), seen.units)

    @abstractmethod
    def plan(self, seen: Observation) -> Plan:
        """What the cache of one prompt keeps.

        Args:
            seen: What is seen of the prompt.

        Raises:
            BudgetTooSmallError: The method cannot work on this prompt with so small a budget; a ``ValueError`` that
                names the smallest one.
        """


def static_plan(kept: list[list[Tensor]], merged: Merging | None = None, kept_bits: Bits = 16) -> Plan:
    """A plan without dynamic heads."""
    return Plan(kept, [[0] * len(layer) for layer in kept], merged=merged, kept_bits=kept_bits)
