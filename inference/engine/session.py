"""Sessions: a model with a preallocated cache and positions for one batch of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import TracebackType

import torch
from torch import Tensor, nn

from saccade.common.transfer import to_device
from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.engine.cache import KVCache, shared_prefix
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.compressed.observing import PromptObserver
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.graphs import GraphEngine, NotCapturedError
from saccade.inference.engine.hf_attention import SessionAttention
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.engine.masks import DeviceMasks, SlotMasks, StepMasks
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.rank_agreement import RankAgreement
from saccade.inference.engine.recording import AttentionRecorder, Recorded, Recorder, Recording
from saccade.inference.huggingface.models import (
    cache_argument,
    check_cache_fits,
    check_supported,
    device_of,
    has_attention,
    is_windowed,
    kept_logits,
    last_position,
    recurrent_layers,
    takes_logits_to_keep,
    text_config,
)
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, layer_output
from saccade.inference.huggingface.vision import deep_features
from saccade.inference.huggingface.visual_prompts import VisualPrompt, deep_piece, visual_piece
from saccade.inference.recurrent.mixers import RecurrentForwards
from saccade.inference.recurrent.states import RecurrentStates
from saccade.inference.trees import TokenTree

# Maximum relative difference between the logits of a replayed and an eager step. Their kernels round differently, and a
# mixture of experts may then choose another of two nearly equal experts; an invalid capture differs much more.
_REPLAY_TOLERANCE = {torch.float64: 1e-6, torch.float32: 0.01}


class Session:
    """Runs a Hugging Face model on a batch of growing texts, whose rows differ in length.

    ``lengths[b]`` tokens of row ``b`` are in the cache. ``forward`` writes after them without changing the lengths,
    ``commit`` keeps the accepted tokens, and ``truncate`` rolls back; rolling back only changes lengths, and moves the
    states of recurrent layers (:class:`saccade.inference.recurrent.states.RecurrentStates`). The model is changed only
    while a forward runs. Use a session as a context manager, which frees the cache at the end.

    A session passed to :meth:`saccade.inference.Decoder.start` can be used for several generations: a later prompt then
    reads only the tokens that are not in the cache.

    Args:
        model: A decoder-only Hugging Face model, for example a Llama, Qwen3, Mistral or Gemma.
        capacity: Slots of each row: the longest text plus the widest step.
        skip: Sub-layers that ``forward(..., skipped=True)`` skips.
        synced: Agree with the other ranks before every forward, as sharded weights (ZeRO-3, FSDP) need.
        pool: Where graph engines are kept between sessions; ``None`` is a pool of default settings.
        recording: What is stored in ``recorded`` besides the logits; ``None`` records nothing.
        rollback: Committed tokens that :meth:`truncate` can take back from a model with recurrent layers, which keeps
            a state for each of them. What is not committed needs none, and without such layers there is no limit.
        compressor: What is left of the cache behind the prefill, anew for every prompt; ``None`` is all of it.

    Raises:
        ValueError: The model is not supported; the message gives the reason.
    """

    def __init__(
        self,
        model: nn.Module,
        capacity: int,
        *,
        skip: SublayerSkip | None = None,
        synced: bool = False,
        pool: EnginePool | None = None,
        recording: Recording | None = None,
        rollback: int = 0,
        compressor: CacheCompressor | None = None,
    ) -> None:
        check_supported(model)
        if compressor is not None:
            compressor.check(model)
        self.model, self.compressor = model, compressor
        self.states = RecurrentStates(rollback) if recurrent_layers(model) else None
        self._forwards = None if self.states is None else RecurrentForwards(model, self.states)
        self.skip = skip
        self.device = device_of(model)
        self.pool = pool or EnginePool(EngineConfig())
        wanted = self.pool.settings.capacity
        if wanted is not None and wanted < capacity:
            raise ValueError(
                f"engine.capacity must be at least {capacity} tokens, the longest text and its widest step, got "
                f"{wanted}: raise it, or omit it."
            )
        self.capacity = capacity if wanted is None else wanted
        self.recording = recording or Recording()
        self.recorded = Recorded()
        self.lengths: list[int] = []
        self.offsets: list[int] = []
        self.target_forwards = self.draft_forwards = 0
        self._texts: list[list[int]] = []  # known leading tokens of every row of the cache
        self._engine: GraphEngine | None = None
        self.storage: KVCache | RaggedCache
        self._new_storage()
        self._last_position = last_position(model)
        self._keeps_logits = takes_logits_to_keep(model)
        self._windowed = is_windowed(model)
        self._attends = has_attention(model)
        self._cache_argument = cache_argument(model)
        self._closed = False
        self._in_use = False
        self._attention = SessionAttention(model)
        kinds = {"target": self._dummy} | ({} if skip is None else {"draft": partial(self._dummy, True)})
        self.agreement = RankAgreement(kinds, self.device) if synced else None
        # sharded weights are gathered into tensors that training uses later, which must not be inference tensors
        self._grad_free = torch.no_grad if synced else torch.inference_mode

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the cache, or returns the engine to the pool; the session cannot be used afterwards."""
        if not self._closed:
            self._closed = True
            self._free()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Context that reserves the session for one generation.

        Raises:
            ValueError: Another generation uses the session, or it is closed.
        """
        self._check_open()
        if self._in_use:
            raise ValueError("the session is in use by another generation: finish or close that one first.")
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    def remember(self, texts: Sequence[Sequence[int]]) -> None:
        """Records which tokens the cache holds, so that a later prompt reads only what follows them.

        Args:
            texts: The tokens of every row; those after its length are ignored.
        """
        self._texts = [list(text[:length]) for text, length in zip(texts, self.lengths, strict=True)]

    def prefill(self, prompts: Sequence[Sequence[int]], visual: Sequence[VisualPrompt] | None = None) -> Tensor:
        """Reads the prompts.

        Leading tokens that the cache already holds are not read again; in a batch, as many as the cache holds of every
        row, and with recurrent layers only if these are all that it holds. Prompts with images or videos, or a
        different number of rows, start with an empty cache.

        Args:
            prompts: One list of token ids for each row; lengths may differ.
            visual: The same prompts with their images or videos; ``None`` for text only.

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
        known = 0 if visual is not None or self.compressor is not None else self._known(prompts)
        if known == 0:
            if self.lengths:
                self._free()
                self._new_storage()
            self._allocate(len(prompts), longest)
        elif self._engine is not None:
            self._engine.refresh()
        tokens = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]).to(self.device)
        recorder = observer = None
        if visual is not None and self.recording.attention:
            recorder = AttentionRecorder([prompt.visual for prompt in visual], lengths)
        if self.compressor is not None:
            observer = PromptObserver(self.compressor, lengths, [each.visual for each in visual or ()], self.device)
        states: list[Tensor] = []
        last: list[Tensor | None] = [None] * len(prompts)
        with self._all_or_nothing():
            # a recurrent layer returns the state at the end of a piece
            stateful = self._forwards is not None and self._forwards.stateful
            for start, stop in self.pool.settings.pieces(known, lengths, at_every_end=stateful):
                self.storage.place([start] * len(prompts), stop - start)
                masks = SlotMasks([start], stop - start, self.device)
                ends = sorted({length - 1 - start for length in lengths if start < length <= stop})
                keep = torch.tensor(ends or [0], device=self.device)
                if visual is None:
                    read = {"input_ids": tokens[:, start:stop]}
                    positions = torch.arange(start, stop, device=self.device)[None]
                else:
                    read, positions = visual_piece(visual, start, stop)
                around = self._reading(visual, start, stop, recorder, observer)
                self.target_forwards += 1
                logits = self._call(read, masks, positions, keep, False, around)
                if self.states is not None:
                    self.states.commit([min(max(length - start, 0), stop - start) for length in lengths])
                if visual is not None and self.recorded.states is not None:
                    states.append(self.recorded.states)
                for row, length in enumerate(lengths):
                    if start < length <= stop:
                        last[row] = logits[row, ends.index(length - 1 - start)]
        self.lengths = lengths
        self._texts = [list(prompt) for prompt in prompts]
        self.offsets = [0] * len(prompts) if visual is None else [prompt.offset for prompt in visual]
        if visual is not None:
            self._texts = [[] for _ in prompts]  # placeholder tokens do not tell which images or videos were read
        if recorder is not None:
            self.recorded.scores = recorder.scores()
        if visual is not None and states:
            whole = torch.cat(states, 1)
            self.recorded.visual_states = [whole[row, prompt.visual] for row, prompt in enumerate(visual)]
        self.recorded.states = None  # states of the prompts; only those of later forwards are kept
        if observer is not None and isinstance(self.storage, KVCache):
            with self._all_or_nothing(), self._grad_free():
                self.storage = left = observer.compressed(self.storage, self.capacity)
                self.cache = session_cache(left, len(left.chunks))
                self._take_engine(len(prompts), left)
        return torch.stack([row for row in last if row is not None])

    def _known(self, prompts: Sequence[Sequence[int]]) -> int:
        """Number of leading tokens that the cache holds of every prompt; the last token of each is always read."""
        if len(prompts) != len(self.lengths) or any(self.offsets):
            return 0
        known = shared_prefix(prompts, self._texts, self.lengths)
        # a state is there behind the last token only
        return 0 if self.states is not None and set(self.lengths) != {known} else known

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Context in which prompts are read; if that fails, nothing counts as read, and no state is left half way."""
        try:
            yield
        except BaseException:
            self._free()
            self._new_storage()
            raise

    def _new_storage(self) -> None:
        layers = text_config(self.model).num_hidden_layers
        self.storage = KVCache(layers, self.capacity)
        self.cache = session_cache(self.storage, layers, self.states)
        self.lengths, self.offsets, self._texts, self.recorded = [], [], [], Recorded()

    @property
    def cache_bytes(self) -> int:
        """Size of the key-value buffers and of the states of recurrent layers, in bytes."""
        return self.storage.bytes + (0 if self.states is None else self.states.bytes)

    def _free(self) -> None:
        if self.states is not None:
            self.states.clear()
        if self._engine is None:
            self.storage.clear()
        else:
            self.pool.give_back(self._engine)
            self._engine = None

    def _allocate(self, batch: int, longest: int) -> None:
        """Takes an engine if the settings ask for one, and checks that the cache fits on the device."""
        if self.compressor is None:
            self._take_engine(batch)
        else:  # first the whole prompts, without room for new tokens
            self.storage.capacity = longest
        if not self.storage.bytes:
            check_cache_fits(self.model, batch, self.storage.capacity, self.device)

    def _take_engine(self, batch: int, compressed: RaggedCache | None = None) -> None:
        synced, layer = self.agreement is not None, self.recording.layer
        self._engine = self.pool.lease(self.model, batch, self.capacity, self.skip, synced, layer, compressed)
        if self._engine is not None:
            self.storage, self.cache = self._engine.storage, self._engine.cache

    def forward(self, tokens: Tensor, tree: TokenTree | None = None, *, skipped: bool = False) -> Tensor:
        """Runs the model on new tokens after the committed ones, without changing the lengths.

        Args:
            tokens: ``[batch, nodes]`` token ids, node 0 of the tree first.
            tree: Shape of the tokens; ``None`` is a chain.
            skipped: Skip the session's sub-layers.

        Returns:
            Logits ``[batch, nodes, vocabulary]``.

        Raises:
            ValueError: A wrong number of rows, more tokens than fit in the cache, a tree for a model with recurrent
                layers, or the session is closed.
        """
        self._check_open()
        if len(tokens) != len(self.lengths):
            raise ValueError(
                f"tokens must have {len(self.lengths)} rows, one for each row of the session, got {len(tokens)}: pass "
                "tokens for the rows that are left."
            )
        nodes = tokens.shape[1]
        shape = TokenTree.chain(nodes - 1) if tree is None else tree
        if self.states is not None and not shape.is_chain:
            raise ValueError(
                f"{type(self.model).__name__} has recurrent layers, which read one token after the other and no trees: "
                "use a decoder that drafts chains, such as PromptLookup or AssistedDecoding."
            )
        with self._grad_free():
            if isinstance(self.storage, RaggedCache) and self.storage.settle(self.lengths):
                self._take_engine(len(tokens), self.storage)  # only now it is known which heads fetch
        self.storage.place(self.lengths, nodes)
        self.draft_forwards += skipped
        self.target_forwards += not skipped
        if self._engine is not None:
            try:
                with self._grad_free():
                    logits, self.recorded.states = self._engine.forward(
                        tokens, self.lengths, self.offsets, shape, skipped, self._attached
                    )
                if not self._engine.proven and self._engine.replayed:
                    return self._prove_replay(logits, tokens, shape, skipped)
                return logits
            except NotCapturedError as error:
                self.pool.refuse(self.model, error)
                self._engine = None
        return self._eager(tokens, shape, skipped)

    def _prove_replay(self, replayed: Tensor, tokens: Tensor, shape: TokenTree, skipped: bool) -> Tensor:
        """Compares a replayed step with an eager one. If they differ, later steps are eager too.

        Returns:
            The replayed logits if they agree with the eager ones, else the eager ones.
        """
        states = self.recorded.states
        eager = self._eager(tokens, shape, skipped)
        difference = (replayed - eager).double().norm() / eager.double().norm()
        if self._engine is not None and bool(difference < _REPLAY_TOLERANCE.get(eager.dtype, 0.2)):
            self._engine.proven = True
            self.recorded.states = states
            return replayed
        self.pool.refuse(self.model, NotCapturedError("a replayed step differs from the model's own forward"))
        self._engine = None
        return eager

    def _eager(self, tokens: Tensor, shape: TokenTree, skipped: bool) -> Tensor:
        masks: StepMasks = SlotMasks(self.lengths, tokens.shape[1], self.device, shape)
        if isinstance(self.storage, RaggedCache):
            masks = DeviceMasks.of(self.lengths, shape, self.device)
        offsets = torch.tensor(self.offsets, device=self.device)[:, None] if any(self.offsets) else 0
        # only padding, whose logits are not used, can exceed the context, where learned position embeddings end
        positions = (masks.starts + offsets + masks.depths).clamp(max=self._last_position)
        return self._call({"input_ids": tokens}, masks, positions, 0, skipped)

    def token_column(self, tokens: Sequence[int]) -> Tensor:
        """One token for each row as ``[batch, 1]`` on the session's device."""
        return to_device(tokens, self.device)[:, None]

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keeps the tokens of an accepted path in every row and adds them to the lengths.

        Args:
            paths: The kept nodes of the last ``forward`` for every row, from the root downwards; may be empty.
        """
        if any(path and path[-1] != len(path) - 1 for path in paths):
            with self._grad_free():
                self.storage.gather(self.lengths, paths)
        if self.states is not None:
            self.states.commit([len(path) for path in paths])
        for row, path in enumerate(paths):
            self.lengths[row] += len(path)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Rolls every row back to at most the given length, in tokens.

        Raises:
            ValueError: A length is below 0, or needs states of recurrent layers that are not kept any more.
        """
        if min(lengths, default=0) < 0:
            raise ValueError(
                f"lengths must be at least 0, got {list(lengths)}: pass the number of tokens to keep in each row."
            )
        shorter = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]
        if self.states is not None:
            self.states.rewind([old - new for old, new in zip(self.lengths, shorter, strict=True)])
        self.lengths = shorter
        for row, (text, length) in enumerate(zip(self._texts, self.lengths, strict=True)):
            if length < len(text):  # other tokens may be written there
                self._texts[row] = text[:length]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others.

        Args:
            rows: Indices of the rows to keep, ascending.
        """
        with self._grad_free():
            if self._engine is None:
                self.storage.keep(rows)
            else:
                self.storage.compact(rows)
            if self.states is not None:
                self.states.keep(rows)
        self.lengths = [self.lengths[row] for row in rows]
        self.offsets = [self.offsets[row] for row in rows]
        self._texts = [self._texts[row] for row in rows]
        self.recorded.keep(rows)

    def drain(self) -> None:
        """Joins the forwards of the other ranks until all have finished; does nothing without ``synced``."""
        if self.agreement is not None:
            with self._grad_free():
                self.agreement.drain()

    @contextmanager
    def _reading(
        self, visual: Sequence[VisualPrompt] | None, start: int, stop: int, *recorders: Recorder | None
    ) -> Iterator[None]:
        """Context of the forward that reads the places from ``start`` to ``stop`` of prompts."""
        with ExitStack() as around:
            for recorder in recorders:
                if recorder is not None:
                    around.enter_context(recorder.recording(start))
            if visual is not None:
                around.enter_context(deep_features(self.model, *deep_piece(visual, start, stop)))
            yield

    def _call(
        self,
        read: dict[str, Tensor],
        masks: StepMasks,
        positions: Tensor,
        keep: Tensor | int,
        skipped: bool,
        around: AbstractContextManager[None] | None = None,
    ) -> Tensor:
        layer = self.recording.layer
        tokens = next(iter(read.values())).shape[1]

        def run() -> Tensor:
            step = nullcontext() if self.states is None else self.states.step(tokens, masks.reads_prompts)
            # what belongs to this forward alone is not there while ranks agree on another one
            own = around or nullcontext()
            with self._attached(skipped), own, masks.active(), step, layer_output(self.model, layer) as taken:
                logits: Tensor = self.model(
                    **read,
                    **({"logits_to_keep": keep} if self._keeps_logits else {}),
                    # with a mask of four dimensions transformers asks for none
                    attention_mask=None if self._windowed or not self._attends else masks.full(),
                    position_ids=positions,
                    **{self._cache_argument: self.cache},
                    use_cache=True,
                ).logits
            if self._windowed and not masks.served:
                raise ValueError(
                    f"{type(self.model).__name__} does not ask transformers for its masks, so its windows are not "
                    "known to a session: decode this model with model.generate."
                )
            self.recorded.states = taken[0] if taken else None
            return kept_logits(logits, keep, tokens)

        with self._grad_free():
            return run() if self.agreement is None else self.agreement.call("draft" if skipped else "target", run)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the session is closed and its cache is freed: use it inside its with block.")

    @contextmanager
    def _attached(self, skipped: bool) -> Iterator[None]:
        with (
            self._attention.active(),  # holds the model's lock
            nullcontext() if self._forwards is None else self._forwards.active(),
            self.storage.active() if isinstance(self.storage, RaggedCache) else nullcontext(),
            self.skip.active() if skipped and self.skip is not None else nullcontext(),
        ):
            yield

    def _dummy(self, skipped: bool = False) -> None:
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        with self._attached(skipped), SlotMasks([0], 1, self.device).active():
            self.model(input_ids=token, position_ids=torch.zeros_like(token), use_cache=False)
