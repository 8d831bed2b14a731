"""A compressed cache for transformers' own ``generate``: ``past_key_values=CompressedCache(compressor, model)``."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from saccade.common.checks import check_count
from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.compressed.observing import PromptObserver
from saccade.inference.engine.hf_attention import SessionAttention
from saccade.inference.engine.masks import DeviceMasks, SlotMasks
from saccade.inference.huggingface.models import (
    base_model,
    check_cache_fits,
    check_supported,
    device_of,
    language_part,
    text_config,
)
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.inference.trees import MAX_NODES, TokenTree

# What a language part is given for each token, beside its ids and positions; other tensors are refused with padding.
_BY_TOKEN = ("input_ids", "inputs_embeds", "visual_pos_masks")


@dataclass
class _Held:
    """What all layers of a :class:`CompressedCache` share.

    Args:
        storage: Keys and values; ``None`` before the first forward.
        seen: Tokens that the model has read, padding and deleted tokens included.
    """

    storage: KVCache | RaggedCache | None = None
    seen: int = 0


class _GenerateLayer(CacheLayerMixin):
    """One layer of a :class:`CompressedCache` in the shape that transformers expects."""

    is_sliding = False
    is_croppable = True

    def __init__(self, held: _Held, index: int) -> None:
        super().__init__()
        self.held, self.index = held, index

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the storage allocates itself at its first write."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes new states ``[batch, kv_heads, tokens, head_dim]`` behind those of every row."""
        if self.held.storage is None:
            raise ValueError(
                "past_key_values must be a CompressedCache of this model that is not closed, got one of another model "
                "or a closed one: make one with CompressedCache(compressor, model)."
            )
        return self.held.storage.write(self.index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had been deleted."""
        return self.held.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens that the model has read, padding and deleted tokens included."""
        return self.held.seen

    def get_max_length(self) -> int:
        """It grows."""
        return -1


class CompressedCache(Cache):
    """The cache of one batch of prompts for transformers' ``generate``, compressed when the prompts have been read.

    ::

        with CompressedCache(HybridKV(budget=0.1), model) as cache:
            model.generate(**inputs, past_key_values=cache)

    The first forward with this cache reads the prompts: their whole cache is on the device, and how their last rows
    attend is observed. Then the compressor decides what stays. What is read later is kept whole. The text is the one
    that :class:`saccade.inference.Autoregressive` writes with this compressor; all of ``generate`` that needs one text
    for each row works, sampling and processors included; beams and transformers' assisted decoding
    do not.

    The model is as it was between its forwards: only while a forward runs that was given this cache, its attention is
    another one, whatever ``attn_implementation`` says. For that the model gets hooks, which :meth:`close`, or the end
    of the ``with`` block, takes off.

    Prompts of different lengths are padded on the left, as ``generate`` wants it; padding is not kept.

    Args:
        compressor: What is left of the prompts' cache.
        model: The model whose ``generate`` is called.
        room: Tokens for which there is room behind the prompts at first. It doubles where they are used up, and is
            copied then.

    Raises:
        ValueError: A compressor that is none, or a model that it cannot work on.
    """

    def __init__(self, compressor: CacheCompressor, model: nn.Module, room: int = 256) -> None:
        if not isinstance(compressor, CacheCompressor):
            raise ValueError(
                f"compressor must be a cache compressor, got {compressor!r}: give an object, such as "
                "HybridKV(budget=0.1)."
            )
        check_count("room", room)
        check_supported(model)
        compressor.check(model)
        self.compressor, self.room = compressor, room
        self._held = _Held()
        self._lengths: list[int] = []
        self._prompts: list[int] = []  # lengths of the prompts
        self._ids: Tensor | None = None  # of the running forward
        layers = text_config(model).num_hidden_layers
        super().__init__(layers=[_GenerateLayer(self._held, index) for index in range(layers)])
        self._model = weakref.ref(model)
        self._attention = SessionAttention(model)
        self._visual = visual_token_ids(model)
        self._running = ExitStack()
        whole: nn.Module = base_model(model)
        part: Any = language_part(whole)
        part = getattr(part, getattr(part, "base_model_prefix", ""), part)
        own = weakref.ref(self)  # hooks do not keep the cache in memory

        def mine(named: Mapping[str, Any]) -> CompressedCache | None:
            cache = own()
            return cache if cache is not None and named.get("past_key_values") is cache else None

        def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if (cache := mine(named)) is not None:
                cache._ids = named.get("input_ids", given[0] if given else None)

        def begin(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any] | None:
            if (cache := mine(named)) is None:
                return None
            return (), cache._begin({"input_ids": given[0]} | named if given else dict(named))

        def end(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            cache = mine(named)
            return None if cache is None else cache._end(output)

        handles = [
            whole.register_forward_pre_hook(note, with_kwargs=True),
            part.register_forward_pre_hook(begin, with_kwargs=True),
            part.register_forward_hook(end, with_kwargs=True, always_call=True),
        ]
        self._taken_off = weakref.finalize(self, lambda: [handle.remove() for handle in handles])

    def __enter__(self) -> CompressedCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the cache and takes its hooks off the model; it cannot be used afterwards."""
        self.reset()
        self._taken_off()

    def reset(self) -> None:
        """Frees what is held, so that the next forward reads new prompts."""
        if self._held.storage is not None:
            self._held.storage.clear()
        self._held.storage, self._held.seen, self._lengths, self._prompts = None, 0, [], []

    @property
    def device_bytes(self) -> int:
        """Size in bytes of what is held on the device."""
        return 0 if self._held.storage is None else self._held.storage.bytes

    @property
    def host_bytes(self) -> int:
        """Size in bytes of what is held in host memory."""
        return 0 if self._held.storage is None else self._held.storage.host_bytes

    def activate_past_recording(self) -> None:
        """Announces that tokens will be taken back, as assisted decoding does before it reads anything.

        Raises:
            ValueError: The prompts have not been read; the first draft would be read and compressed together with them.
        """
        if not self._prompts:
            raise ValueError(
                "a CompressedCache cannot be used by transformers' assisted decoding, which reads its first draft with "
                "the prompt: use AssistedDecoding or PromptLookup with this compressor."
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back tokens that were read behind the prompts, as assisted decoding does.

        Args:
            tokens_to_remove: Minus their number.

        Raises:
            ValueError: More than were read behind the prompts, or a number above 0.
        """
        read = min((now - before for now, before in zip(self._lengths, self._prompts, strict=True)), default=0)
        if not -read <= tokens_to_remove <= 0:
            raise ValueError(
                f"tokens_to_remove must be from {-read} to 0, got {tokens_to_remove}: tokens of a compressed prompt "
                "cannot be taken back; call reset() for a new prompt."
            )
        self._lengths = [length + tokens_to_remove for length in self._lengths]
        self._held.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refused: every row has a plan of its own.

        Raises:
            ValueError: Always.
        """
        raise ValueError("num_beams must be 1 with a CompressedCache, whose rows cannot be exchanged: set it to 1.")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, as :meth:`reorder_cache`.

        Raises:
            ValueError: Always.
        """
        self.reorder_cache(torch.empty(0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refused, as :meth:`reorder_cache`.

        Raises:
            ValueError: Always.
        """
        self.reorder_cache(indices)

    def _begin(self, named: dict[str, Any]) -> dict[str, Any]:
        """Enters what a forward of the language part runs in; returns what it is given in the place of ``named``."""
        model = self._model()
        if model is None:
            raise ValueError("the model of the CompressedCache is gone: make another one.")
        if torch.is_grad_enabled():
            raise ValueError(
                "a CompressedCache has no gradients: call the model under torch.no_grad(), as generate does."
            )
        read = named["inputs_embeds"] if named.get("inputs_embeds") is not None else named["input_ids"]
        mask = named.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(
                f"attention_mask must be [batch, length] with a CompressedCache, got {shape}: pass the tokenizer's."
            )
        batch, tokens = read.shape[:2]
        with ExitStack() as undo:
            undo.enter_context(self._attention.active())
            if self._lengths:
                changed = self._later(undo, batch, tokens, read.device)
            else:
                changed = self._prompt(undo, model, named, batch, tokens, mask, read.device)
            self._running = undo.pop_all()
        return named | changed

    def _prompt(
        self, undo: ExitStack, model: nn.Module, named: dict[str, Any], batch: int, tokens: int, mask: Any, device: Any
    ) -> dict[str, Any]:
        """The forward that reads the prompts: they are moved to the front of their rows, and nothing sees padding."""
        pads = [0] * batch
        if mask is not None and not bool(mask.all()):
            if mask.shape[1] != tokens or not bool((mask.diff(dim=1) >= 0).all()) or not bool(mask[:, -1].all()):
                raise ValueError(
                    f"attention_mask must be of {tokens} tokens with padding on the left for a CompressedCache, got "
                    f"shape {tuple(mask.shape)} with 0 elsewhere: set the tokenizer's padding_side to 'left'."
                )
            pads = (mask == 0).sum(1).tolist()
        self._pads = pads
        lengths = [tokens - pad for pad in pads]
        positions = named.get("position_ids")
        if positions is None:
            positions = torch.arange(tokens, device=device).expand(batch, -1)
            positions = (positions - torch.tensor(pads, device=device)[:, None]).clamp(min=0)
        changed: dict[str, Any] = {"attention_mask": None, "position_ids": positions}
        visual = None
        if self._visual and self._ids is not None and self._ids.shape == (batch, tokens):
            found = torch.isin(self._ids, torch.tensor(self._visual, device=self._ids.device))
            visual = [row[pad:].nonzero()[:, 0] for row, pad in zip(found, pads, strict=True)]
        if any(pads):
            unknown = [
                name
                for name, value in named.items()
                if isinstance(value, Tensor)
                and value.shape[:2] == (batch, tokens)
                and name not in (*_BY_TOKEN, "attention_mask", "position_ids")
            ]
            if unknown:
                raise ValueError(
                    f"{type(model).__name__} reads {unknown[0]} for every token, which a CompressedCache cannot move "
                    "with the padding: generate for one prompt at a time."
                )
            order = _moved(pads, tokens, device)
            changed |= {
                name: value[torch.arange(batch, device=value.device)[:, None], order]
                for name in _BY_TOKEN
                if isinstance(value := named.get(name), Tensor) and value.shape[:2] == (batch, tokens)
            }
            changed["position_ids"] = _behind(positions.expand(*positions.shape[:-2], batch, tokens), order, lengths)
        check_cache_fits(model, batch, tokens, device_of(model))
        full = KVCache(len(self.layers), tokens)
        full.place([0] * batch, tokens)
        self._observer = PromptObserver(self.compressor, lengths, visual, device)
        self._held.storage, self._lengths = full, lengths
        undo.enter_context(self._observer.recording(0))
        undo.enter_context(SlotMasks([0], tokens, device).active())
        return changed

    def _later(self, undo: ExitStack, batch: int, tokens: int, device: torch.device) -> dict[str, Any]:
        """A forward behind the prompts."""
        if batch != len(self._lengths):
            raise ValueError(
                f"input_ids must have {len(self._lengths)} rows, those whose prompts the CompressedCache holds, got "
                f"{batch}: call reset() before other prompts."
            )
        if tokens > MAX_NODES:
            raise ValueError(
                f"input_ids must have at most {MAX_NODES} new tokens behind a compressed prompt, got {tokens}: call "
                "reset() and give the whole text, and leave prefill_chunk_size out."
            )
        storage = self._held.storage
        if not isinstance(storage, RaggedCache):
            raise ValueError("the CompressedCache has not read its prompts to the end: call reset() and begin anew.")
        needed = max(self._lengths) + tokens
        if needed > storage.capacity:
            storage.grow(max(needed, storage.capacity + self.room), self._lengths)
            self.room *= 2
        storage.settle(self._lengths)
        storage.place(self._lengths, tokens)
        masks = DeviceMasks.of(self._lengths, TokenTree.chain(tokens - 1), device)
        undo.enter_context(storage.active())
        undo.enter_context(masks.active())
        self._read = tokens
        return {"attention_mask": masks.full()}

    def _end(self, output: Any) -> Any:
        """Leaves what :meth:`_begin` has entered; behind the prompts, compresses their cache."""
        running, self._running = self._running, ExitStack()
        running.close()
        if output is None:  # an error
            if not isinstance(self._held.storage, RaggedCache):
                self.reset()
            return None
        storage = self._held.storage
        if isinstance(storage, RaggedCache):
            self._lengths = [length + self._read for length in self._lengths]
            self._held.seen += self._read
            return None
        if not isinstance(storage, KVCache):
            return None
        tokens = storage.capacity
        try:
            self._held.storage = self._observer.compressed(storage, max(self._lengths) + self.room)
        except BaseException:
            self.reset()
            raise
        self._held.seen, self._prompts = tokens, list(self._lengths)
        if any(self._pads):
            hidden = output.last_hidden_state
            rows = torch.arange(len(hidden), device=hidden.device)[:, None]
            back = _moved([-pad for pad in self._pads], tokens, hidden.device)
            output.last_hidden_state = hidden[rows, back]
            if getattr(output, "hidden_states", None) is not None:
                output.hidden_states = tuple(states[rows, back] for states in output.hidden_states)
        return output


def _moved(pads: Sequence[int], tokens: int, device: torch.device) -> Tensor:
    """``[batch, tokens]`` places from which every row is read so that it begins ``pads`` tokens later, in a circle."""
    return (torch.arange(tokens, device=device) + torch.tensor(list(pads), device=device)[:, None]) % tokens


def _behind(positions: Tensor, order: Tensor, lengths: Sequence[int]) -> Tensor:
    """Positions ``[..., batch, tokens]`` of moved rows; those of the padding behind a row go on where the row ends."""
    moved = positions.gather(-1, order.expand(positions.shape))
    place = torch.arange(order.shape[1], device=order.device)
    over = (place - (torch.tensor(list(lengths), device=order.device)[:, None] - 1)).clamp(min=0)
    return moved.gather(-1, (place - over).expand(positions.shape)) + over
