"""A session: one model, its preallocated cache and its positions, for one batch of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType

import torch
from torch import Tensor, nn

from saccade.common.transfer import to_device
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.graphs import GraphEngine, NotCapturedError
from saccade.inference.engine.hf_attention import SessionAttention
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.engine.observation import Noted, Observation, VisualAttention
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.rank_agreement import RankAgreement
from saccade.inference.huggingface.models import (
    cache_bytes,
    check_supported,
    device_of,
    free_bytes,
    last_position,
    text_config,
)
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, layer_output
from saccade.inference.huggingface.visual_prompts import VisualPrompt
from saccade.inference.trees import TokenTree


class Session:
    """Drives a Hugging Face model over growing texts whose rows have their own lengths.

    The model is changed while a forward runs, never between forwards. Use the session as a context manager: it gives
    the memory of its cache back at the end.
    ``lengths[b]`` tokens of row ``b`` are in the cache. ``forward`` writes behind them without moving the lengths,
    ``commit`` keeps what was accepted, ``truncate`` rolls back. Rolling back moves a number and nothing else.

    Args:
        model: A decoder-only Hugging Face model with full attention, for example Llama, Qwen2 or Qwen3.
        capacity: Slots of each row: the longest text plus the widest step.
        skip: Sub-layers that ``forward(..., skipped=True)`` leaves out.
        synced: Agree with the other ranks before every forward, as sharded weights (ZeRO-3, FSDP) need.
        floor: Where engines are kept from session to session; ``None`` is a floor of default settings.
        observation: What is noted in ``noted`` beside the logits; ``None`` notes nothing.

    Raises:
        ValueError: The model cannot be driven exactly (the message says what stands in the way).
    """

    def __init__(
        self,
        model: nn.Module,
        capacity: int,
        *,
        skip: SublayerSkip | None = None,
        synced: bool = False,
        floor: EnginePool | None = None,
        observation: Observation | None = None,
    ) -> None:
        check_supported(model)
        self.model = model
        self.skip = skip
        self.device = device_of(model)
        config = text_config(model)
        layers = config.num_hidden_layers
        self.floor = floor or EnginePool(EngineConfig())
        wanted = self.floor.settings.capacity
        if wanted is not None and wanted < capacity:
            raise ValueError(
                f"engine.capacity is {wanted} tokens, but the longest text and its widest step need {capacity}: raise "
                "it, or leave it out."
            )
        capacity = capacity if wanted is None else wanted
        self._engine: GraphEngine | None = None
        self._last_position = last_position(model)
        self.storage = KVCache(layers, capacity)
        self.cache = session_cache(self.storage, layers)
        self.lengths: list[int] = []
        self.offsets: list[int] = []
        self.observation = observation or Observation()
        self.noted = Noted()
        self.target_forwards = 0
        self.draft_forwards = 0
        self._closed = False
        self._attention = SessionAttention(model)
        self.gate = self._make_gate() if synced else None
        # Sharded weights are gathered into tensors that training uses again: those must not be inference tensors.
        self._grad_free = torch.no_grad if synced else torch.inference_mode

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._engine is None:
            self.storage.clear()
        else:
            self.floor.give_back(self._engine)

    def prefill(self, prompts: Sequence[Sequence[int]], visual: Sequence[VisualPrompt] | None = None) -> Tensor:
        """Reads the prompts, padded on the right inside, into an empty cache.

        Args:
            prompts: One list of token ids for each row; lengths may differ.
            visual: The same prompts with their images or videos; ``None`` is text alone.

        Returns:
            Logits of the last token of every prompt, ``[batch, vocabulary]``.

        Raises:
            ValueError: A prompt is empty, the cache does not fit on the device, or the session is closed.
        """
        self._check_open()
        lengths = [len(prompt) for prompt in prompts]
        if not all(lengths):
            raise ValueError(f"the prompt of row {lengths.index(0)} is empty: give at least one token.")
        longest = max(lengths)
        self._allocate(len(prompts))
        tokens = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]).to(self.device)
        watch = None
        if visual is not None and self.observation.attention:
            watch = VisualAttention([prompt.visual for prompt in visual], lengths)
        states: list[Tensor] = []
        last: list[Tensor | None] = [None] * len(prompts)
        for start in range(0, longest, self.floor.settings.prefill_chunk):
            stop = min(longest, start + self.floor.settings.prefill_chunk)
            self.storage.place([start] * len(prompts), stop - start)
            ends = sorted({length - 1 - start for length in lengths if start < length <= stop})
            keep = torch.tensor(ends or [0], device=self.device)
            if visual is None:
                read = {"input_ids": tokens[:, start:stop]}
                positions = torch.arange(start, stop, device=self.device)[None]
            else:
                read, positions = _visual_piece(visual, start, stop)
            self._count(skipped=False)
            with nullcontext() if watch is None else watch.watching(start):
                logits = self._call(read, None, positions, keep, False)
            if visual is not None and self.noted.states is not None:
                states.append(self.noted.states)
            for row, length in enumerate(lengths):
                if start < length <= stop:
                    last[row] = logits[row, ends.index(length - 1 - start)]
        self.lengths = lengths
        self.offsets = [0] * len(prompts) if visual is None else [prompt.offset for prompt in visual]
        if watch is not None:
            self.noted.scores = watch.scores()
        if visual is not None and states:
            whole = torch.cat(states, 1)
            self.noted.visual_states = [whole[row, prompt.visual] for row, prompt in enumerate(visual)]
        # the states behind the prompts judge the first token as a forward's states judge theirs
        self.noted.states = None
        return torch.stack([row for row in last if row is not None])

    def _allocate(self, batch: int) -> None:
        """Takes an engine where the settings ask for one, and refuses a cache that the device cannot hold."""
        capacity = self.storage.capacity
        layer = self.observation.layer
        self._engine = self.floor.lease(self.model, batch, capacity, self.skip, self.gate is not None, layer)
        if self._engine is not None:
            self.storage, self.cache = self._engine.storage, self._engine.cache
        if not self.storage.bytes:
            needed = cache_bytes(self.model, batch, self.storage.capacity)
            free = free_bytes(self.device)
            if free is not None and needed > free:
                raise ValueError(
                    f"the cache of {batch} x {self.storage.capacity} tokens needs {needed:,} bytes, but {free:,} are "
                    f"free on {self.device}: shorten the texts, lower engine.capacity, or use fewer rows."
                )

    def forward(self, tokens: Tensor, tree: TokenTree | None = None, *, skipped: bool = False) -> Tensor:
        """Runs the model on new tokens behind the committed ones; lengths do not move.

        Args:
            tokens: ``[batch, nodes]`` token ids, node 0 of the tree first.
            tree: Shape of the tokens; ``None`` is a chain.
            skipped: Leave out the session's skipped sub-layers.

        Returns:
            Logits ``[batch, nodes, vocabulary]``.

        Raises:
            ValueError: Other rows than the session has, more tokens than the cache holds, or the session is closed.
        """
        self._check_open()
        if len(tokens) != len(self.lengths):
            raise ValueError(
                f"tokens has {len(tokens)} rows, but the session has {len(self.lengths)}: give one for each."
            )
        nodes = tokens.shape[1]
        shape = TokenTree.chain(nodes - 1) if tree is None else tree
        self.storage.place(self.lengths, nodes)
        self._count(skipped)
        if self._engine is not None:
            try:
                with self._grad_free():
                    logits, self.noted.states = self._engine.forward(
                        tokens, self.lengths, self.offsets, shape, skipped, self._attached
                    )
                return logits
            except NotCapturedError as error:
                self.floor.refuse(self.model, error)
                self._engine = None
        return self._eager(tokens, shape, skipped)

    def _eager(self, tokens: Tensor, shape: TokenTree, skipped: bool) -> Tensor:
        nodes = tokens.shape[1]
        uniform = len(set(self.lengths)) == 1
        starts = torch.tensor(self.lengths[:1] if uniform else self.lengths, device=self.device)[:, None]
        depths = torch.tensor(shape.depths, device=self.device)
        mask = None
        if not (uniform and nodes == 1):
            slots = torch.arange(self.storage.extent, device=self.device)
            if shape.is_chain:
                mask = slots <= (starts + depths)[..., None]
            else:
                ancestors = shape.attention_mask.to(self.device)
                offset = (slots - starts)[:, None]  # [rows, 1, slots]: below 0 is the prefix, then come the nodes
                inside = (offset >= 0) & (offset < nodes)
                seen = ancestors[:, offset[:, 0].clamp(0, nodes - 1)].transpose(0, 1)
                mask = (offset < 0) | (inside & seen)
            mask = mask[:, None]
        offsets = torch.tensor(self.offsets, device=self.device)[:, None] if any(self.offsets) else 0
        # only padding, whose logits nobody reads, can stand behind the context; learned positions end there
        positions = (starts + offsets + depths).clamp(max=self._last_position)
        return self._call({"input_ids": tokens}, mask, positions, 0, skipped)

    def token_column(self, tokens: Sequence[int]) -> Tensor:
        """One token for each row as ``[batch, 1]`` on the session's device."""
        return to_device(tokens, self.device)[:, None]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keeps the tokens of an accepted path for every row and moves the lengths behind them.

        Args:
            paths: For every row the kept nodes of the last ``forward``, from the root downwards; may be empty.
        """
        if any(path and path[-1] != len(path) - 1 for path in paths):
            with self._grad_free():
                self.storage.gather(self.lengths, paths)
        for row, path in enumerate(paths):
            self.lengths[row] += len(path)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Rolls every row back to at most the given length, in tokens.

        Raises:
            ValueError: A length is below 0.
        """
        if min(lengths, default=0) < 0:
            raise ValueError(f"lengths must not be below 0, got {list(lengths)}.")
        self.lengths = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but the given ones, in their order."""
        with self._grad_free():
            if self._engine is None:
                self.storage.keep(rows)
            else:
                self.storage.compact(rows)
        self.lengths = [self.lengths[row] for row in rows]
        self.offsets = [self.offsets[row] for row in rows]
        self.noted.keep(rows)

    def drain(self) -> None:
        """Takes part in the forwards of other ranks until all are done; nothing to do without ``synced``."""
        if self.gate is not None:
            with self._grad_free():
                self.gate.drain()

    def _call(
        self, read: dict[str, Tensor], mask: Tensor | None, positions: Tensor, keep: Tensor | int, skipped: bool
    ) -> Tensor:
        layer = self.observation.layer

        def run() -> Tensor:
            with self._attached(skipped), layer_output(self.model, layer) as taken:
                logits: Tensor = self.model(
                    **read,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=self.cache,
                    use_cache=True,
                    logits_to_keep=keep,
                ).logits
            self.noted.states = taken[0] if taken else None
            return logits

        with self._grad_free():
            return run() if self.gate is None else self.gate.call("draft" if skipped else "target", run)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the session is closed and its cache is gone: work inside its with block.")

    def _count(self, skipped: bool) -> None:
        if skipped:
            self.draft_forwards += 1
        else:
            self.target_forwards += 1

    @contextmanager
    def _attached(self, skipped: bool) -> Iterator[None]:
        with self._attention.active():
            if skipped and self.skip is not None:
                with self.skip.active():
                    yield
            else:
                yield

    def _make_gate(self) -> RankAgreement:
        def dummy(skipped: bool) -> None:
            token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            with self._attached(skipped):
                self.model(input_ids=token, position_ids=torch.zeros_like(token), use_cache=False)

        kinds = {"target": lambda: dummy(False)}
        if self.skip is not None:
            kinds["draft"] = lambda: dummy(True)
        return RankAgreement(kinds, self.device)


def _visual_piece(visual: Sequence[VisualPrompt], start: int, stop: int) -> tuple[dict[str, Tensor], Tensor]:
    """Embeddings ``[batch, tokens, hidden]`` and positions of a piece of all prompts, padded on the right."""
    first = visual[0]
    width = stop - start
    embeddings = first.embeddings.new_zeros(len(visual), width, first.embeddings.shape[1])
    positions = first.positions.new_zeros(len(first.positions), len(visual), width)
    for row, prompt in enumerate(visual):
        piece = prompt.embeddings[start:stop]
        embeddings[row, : len(piece)] = piece
        positions[:, row, : len(piece)] = prompt.positions[:, start:stop]
    return {"inputs_embeds": embeddings}, positions if len(positions) > 1 else positions[0]
