"""Base classes of all decoders, with the ways to call them."""

# No postponed annotations here, unlike elsewhere: jsonargparse resolves inherited annotations in the module of the
# subclass, where the names of this module are not defined, and would then accept any value for every setting.
import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from saccade.common.checks import check_choice
from saccade.inference.compression.compressor import CacheCompressor
from saccade.inference.drafting.control import Control, ControlKind, DraftControl
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.engine.config import EngineConfig, EngineKind
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.recording import Recording
from saccade.inference.engine.session import Session
from saccade.inference.generation import GenerationOutput, GenerationRun
from saccade.inference.huggingface.custom_generate import read_call
from saccade.inference.huggingface.models import check_supported, is_sharded
from saccade.inference.huggingface.sublayer_skip import SublayerSkip, skip_sets
from saccade.inference.huggingface.vision import VISUAL_INPUTS
from saccade.inference.model_check import check_model
from saccade.inference.request import Request
from saccade.inference.sampling import Sampling
from saccade.inference.verification.verifier import StrictVerifier, Verifier


class Decoder(ABC):
    """Generates text with a Hugging Face causal language model, called the target.

    There are three ways to use a decoder: ``decoder.generate(model, **inputs)`` returns a :class:`GenerationOutput`;
    ``model.generate(**inputs, custom_generate=decoder)`` returns what ``model.generate`` returns; in YAML it is a
    ``class_path`` with ``init_args``. Settings are fixed at construction. A call leaves the model unchanged.

    A subclass defines :meth:`drafter`, and :meth:`verifier` if it does not verify by the strict rules.
    """

    lossless: ClassVar[bool] = True
    """Whether the text is the target's own: greedy, or the one that a seed draws from the target's distribution."""

    advice: ClassVar[str] = "give a draft model that is nearer to the model, or smaller"
    """What to do where drafts do not pay, for the warning of :class:`DraftControl`."""

    engine: EngineConfig | EngineKind = "auto"
    """How forwards run, the chunk size of the prefill and the capacity of the cache."""

    compressor: CacheCompressor | None = None
    """What is left of the key-value cache of a prompt; ``None`` is all of it."""

    control: ControlKind = "fixed"
    """Whether the number of drafted tokens follows from measured costs and acceptances (:class:`DraftControl`)."""

    @property
    def width(self) -> int:
        """Largest number of tokens drafted in a round."""
        return 0

    @property
    def depth(self) -> int:
        """Largest number of drafted tokens that a round can accept: that of :attr:`width`, but for trees."""
        return self.width

    @property
    def rollback(self) -> int:
        """Most tokens that a draft commits to the target's session and takes back; 0 by default."""
        return 0

    @property
    def pool(self) -> EnginePool:
        """The engines that the decoder reuses in later calls; :meth:`release` frees them."""
        if "_pool" not in vars(self):
            vars(self)["_pool"] = EnginePool(EngineConfig.of(self.engine))
        pool: EnginePool = vars(self)["_pool"]
        return pool

    @abstractmethod
    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """A new drafter for one generation."""

    def verifier(self, model: nn.Module, request: Request) -> Verifier:
        """A new verifier for one generation; by default one with the strict, lossless rules."""
        return StrictVerifier()

    def skipped(self, model: nn.Module) -> SublayerSkip | None:
        """Sub-layers of the target that are skipped while drafting; ``None`` by default."""
        return None

    def recording(self, model: nn.Module) -> Recording | None:
        """What the target's session records besides logits; ``None``, the default, records nothing."""
        return None

    def draft_control(self, model: nn.Module, request: Request, *, synced: bool = False) -> Control | None:
        """The control of the drafts' lengths in one generation; it keeps the costs of a model for later calls.

        There is none if drafts have a fixed length; if a text would depend on the clock, as with a relaxed rule or with
        rejection sampling; and if ranks have to agree on their forwards.

        Args:
            model: The target.
            request: The checked prompts.
            synced: Whether the ranks agree before every forward.
        """
        drawn = request.sampling is not None and request.sampling.coupling == "rejection"
        if self.control == "fixed" or not self.depth or not self.lossless or drawn or synced:
            return None
        known = vars(self).setdefault("_controls", weakref.WeakKeyDictionary()).setdefault(model, {})
        control: Control = known.setdefault(len(request.prompts), self.new_control())
        control.begin()
        return control

    def new_control(self) -> Control:
        """A control that has seen nothing yet."""
        return DraftControl(self.depth)

    def check(self, model: nn.Module | None = None) -> None:
        """Checks the settings before there is any prompt.

        Args:
            model: The target; ``None`` checks only what does not depend on it, such as paths.

        Raises:
            ValueError: A setting cannot work; the message names it.
        """
        if model is not None:
            check_supported(model)
            self.skipped(model)
            self.recording(model)
        if self.compressor is not None:
            self.compressor.check(model)

    def check_unseen(  # noqa: B027
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], tokenizer: Any
    ) -> None:
        """Refuses to be measured on texts that the decoder knows beforehand; one that knows none refuses nothing.

        Args:
            prompts: Token ids of the prompts.
            answers: Token ids of their answers, as far as they are known.
            tokenizer: The tokenizer that made them; ``None`` if it is not known.

        Raises:
            ValueError: The decoder knows one of them; the message says how.
        """

    def independent(self) -> Self:
        """A copy with the same settings, with its own engines, whose results do not depend on earlier calls."""
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        # copies make an engine pool and measurements of their own: graphs and locks cannot be copied
        return {name: value for name, value in vars(self).items() if name not in ("_pool", "_controls")}

    def release(self) -> None:
        """Frees what the decoder keeps between calls: graphs, buffers and draft models that it loaded."""
        if "_pool" in vars(self):
            self.pool.clear()
        vars(self).pop("_controls", None)

    def session(self, model: nn.Module, capacity: int, *, synced: bool = False) -> Session:
        """Opens a session of the target that several generations of this decoder can use one after the other.

        Args:
            model: The target.
            capacity: Slots of each row: tokens of the longest text, new tokens included, plus :attr:`width`.
            synced: Agree with the other ranks before every forward.
        """
        return Session(
            model,
            capacity,
            skip=self.skipped(model),
            synced=synced,
            pool=self.pool,
            recording=self.recording(model),
            rollback=self.rollback,
            compressor=self.compressor,
        )

    def check_session(self, session: Session, model: nn.Module, capacity: int) -> None:
        """Checks that a session can be used for a generation of this decoder.

        Raises:
            ValueError: The session does not fit; the message says why.
        """
        advice = "open it with decoder.session(model, capacity)"
        if session.model is not model:
            raise ValueError(f"session is of another model: {advice}.")
        if session.capacity < capacity:
            raise ValueError(f"session.capacity must be at least {capacity} tokens, got {session.capacity}: {advice}.")
        if skip_sets(self.skipped(model)) not in ((frozenset(), frozenset()), skip_sets(session.skip)):
            raise ValueError(f"session skips other sub-layers than {type(self).__name__} does: {advice}.")
        if session.states is not None and session.states.rollback < self.rollback:
            raise ValueError(
                f"session keeps the states of recurrent layers for {session.states.rollback} earlier tokens, "
                f"{type(self).__name__} takes back up to {self.rollback}: {advice}."
            )
        if session.compressor != self.compressor:
            raise ValueError(
                f"session has the compressor {session.compressor!r}, and {type(self).__name__} has "
                f"{self.compressor!r}: {advice}."
            )
        wanted = self.recording(model) or Recording()
        if wanted not in (Recording(), session.recording):
            raise ValueError(f"session does not record what {type(self).__name__} needs: {advice}.")

    def generate(
        self,
        model: nn.Module,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        sampling: Sampling | None = None,
        do_sample: bool | None = None,
        generation_config: GenerationConfig | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        streamer: Any = None,
        synced: bool = False,
        **visual: Tensor,
    ) -> GenerationOutput:
        """Generates a continuation for every prompt of a batch.

        Args:
            model: The target, a decoder-only Hugging Face model.
            input_ids: ``[batch, length]`` token ids, or a list of ids for each prompt, of any lengths.
            attention_mask: ``[batch, length]``, 0 at padding on either side; ``None`` means no padding.
            max_new_tokens: Maximum number of new tokens of a row, at least 1. Default: that of the model's generation
                config, or 20.
            max_length: Alternative limit: length of ``input_ids`` plus new tokens.
            sampling: How to draw tokens. ``None``: ``do_sample`` decides.
            do_sample: Whether tokens are drawn as the model's generation config says; ``False`` decodes greedily.
                ``None``: the generation config decides that too, as in ``model.generate``.
            generation_config: A configuration of transformers to follow in place of the model's own.
            eos_token_id: Ids that end a row; ``None`` uses the model's, ``()`` never stops early.
            pad_token_id: Id after the end of finished rows; ``None`` uses the model's, else the first EOS id, else 0.
            streamer: A transformers streamer (``put``, ``end``) for a batch of one; it receives verified tokens only.
            synced: Agree with the other ranks before every forward, as sharded weights (ZeRO-3, FSDP) need.
            visual: Images and videos of all rows as returned by a vision-language model's processor:
                ``pixel_values_videos``, ``video_grid_thw``, ... Unknown names raise an error.

        Returns:
            The sequences and their statistics.

        Raises:
            ValueError: Empty prompt, prompt longer than the context, ids outside the vocabulary, impossible limits,
                videos that do not match their placeholders, NaN logits, a setting of the generation config that cannot
                be followed (beams, penalties, ...), or an unsupported model; the message names the value.
        """
        try:
            request = Request.read(
                model,
                input_ids,
                attention_mask,
                max_new_tokens,
                max_length,
                eos_token_id,
                pad_token_id,
                visual,
                do_sample=do_sample,
                sampling=sampling,
                generation_config=generation_config,
            )
            if streamer is not None and len(request.prompts) != 1:
                raise ValueError(
                    f"streamer must be used with a batch of 1, got {len(request.prompts)} rows: use stream() for"
                    " batches."
                )
            return self.complete(model, request, streamer=streamer, synced=synced)
        finally:
            if streamer is not None:  # also after an error: a consumer of the streamer must not wait for ever
                streamer.end()

    def complete(
        self, model: nn.Module, request: Request, *, streamer: Any = None, synced: bool = False
    ) -> GenerationOutput:
        """Runs a checked request to its end. Import and ``custom_generate`` both call this.

        Args:
            model: The target.
            request: The checked prompts, limits and sampling.
            streamer: As in :meth:`generate`.
            synced: As in :meth:`generate`.

        Returns:
            The sequences and their statistics.
        """
        with self._run(model, request, None, synced) as run:
            if streamer is not None:
                streamer.put(torch.tensor(request.prompts))
            for tokens in run:
                if streamer is not None and tokens[0]:
                    streamer.put(torch.tensor(tokens[0]))
        return run.output()

    def start(
        self,
        model: nn.Module,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        sampling: Sampling | None = None,
        do_sample: bool | None = None,
        generation_config: GenerationConfig | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        session: Session | None = None,
        synced: bool = False,
        **visual: Tensor,
    ) -> GenerationRun:
        """Starts a generation that the caller runs step by step.

        Args:
            model: As in :meth:`generate`, and so are the other arguments.
            input_ids: ``[batch, length]``, or a list for each prompt.
            attention_mask: ``[batch, length]``.
            max_new_tokens: Maximum number of new tokens of a row.
            max_length: Alternative limit.
            sampling: How to draw tokens.
            do_sample: Whether tokens are drawn where ``sampling`` is ``None``.
            generation_config: Followed in place of the model's own.
            eos_token_id: Ids that end a row.
            pad_token_id: Id after the end of finished rows.
            session: A session opened with :meth:`session`. Tokens that its cache already holds are not read again, and
                it stays open. ``None`` opens one for this generation.
            synced: Agree with the other ranks before every forward.
            visual: Images and videos.

        Returns:
            The generation, which has not read its prompts yet.

        Raises:
            ValueError: As :meth:`generate`, or the session does not fit.
        """
        request = Request.read(
            model,
            input_ids,
            attention_mask,
            max_new_tokens,
            max_length,
            eos_token_id,
            pad_token_id,
            visual,
            do_sample=do_sample,
            sampling=sampling,
            generation_config=generation_config,
        )
        return self._run(model, request, session, synced)

    def _run(self, model: nn.Module, request: Request, session: Session | None, synced: bool) -> GenerationRun:
        """A run of a checked request."""
        check_model(model, request, self.pool.settings, synced)
        return GenerationRun(self, model, request, session=session, synced=synced)

    def stream(
        self,
        model: nn.Module,
        input_ids: Tensor | Sequence[Sequence[int]],
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        sampling: Sampling | None = None,
        do_sample: bool | None = None,
        generation_config: GenerationConfig | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        **visual: Tensor,
    ) -> Iterator[list[list[int]]]:
        """Like :meth:`generate`, but yields the verified tokens of every round, one list (possibly empty) per row.

        Args:
            model: As in :meth:`generate`, and so are the other arguments.
            input_ids: ``[batch, length]``, or a list for each prompt.
            attention_mask: ``[batch, length]``.
            max_new_tokens: Maximum number of new tokens of a row.
            max_length: Alternative limit.
            sampling: How to draw tokens.
            do_sample: Whether tokens are drawn where ``sampling`` is ``None``.
            generation_config: Followed in place of the model's own.
            eos_token_id: Ids that end a row.
            visual: Images and videos.

        Yields:
            The new tokens of every row since the previous round.
        """
        inputs: dict[str, Any] = dict(visual)
        run = self.start(
            model,
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            sampling=sampling,
            do_sample=do_sample,
            generation_config=generation_config,
            eos_token_id=eos_token_id,
            **inputs,
        )
        with run:
            yield from run

    def __call__(
        self,
        model: nn.Module,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        synced_gpus: bool = False,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        image_sizes: Tensor | None = None,
        batch_num_images: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerationOutput:
        """Called by transformers for ``model.generate(**inputs, custom_generate=decoder)``.

        Every call draws a seed from torch's global generator, so ``torch.manual_seed`` makes results reproducible, with
        the same text from every lossless decoder. transformers does not pass a streamer to a ``custom_generate``: use
        :meth:`generate` or :meth:`stream` for streaming. It passes on unchanged what the signature names, so images and
        videos arrive as the processor made them.

        Raises:
            ValueError: A generation setting that would be ignored (beams, penalties, ...); the message names it.
        """
        visual = {name: value for name, value in locals().items() if name in VISUAL_INPUTS}
        request = read_call(
            model, input_ids, generation_config, logits_processor, stopping_criteria, visual | model_kwargs
        )
        # transformers keeps synced_gpus to itself when the decoding is custom
        out = self.complete(model, request, synced=synced_gpus or is_sharded(model))
        return out if getattr(generation_config, "return_dict_in_generate", False) else out.sequences

    def join(self, model: nn.Module) -> None:
        """Joins the forwards of the other ranks' ``generate(synced=True)`` from a rank that has no prompts."""
        with self.session(model, 1, synced=True) as session:
            session.drain()


@dataclass
class EngineDecoder(Decoder):
    """Base of all decoding methods: a decoder with the settings ``control`` and ``engine``.

    Args:
        compressor: What is left of the key-value cache of a prompt; ``None`` is all of it. The text is then that of the
            compressed cache, and a lossless decoder writes what :class:`Autoregressive` writes with it.
        control: ``auto`` drafts as many tokens as give the most text for the time, up to the decoder's own limit and
            down to none, by what rounds have cost and what was accepted so far; ``fixed`` always drafts as many as the
            decoder allows.
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting of the engine outside its range, another control, or no compressor.
    """

    compressor: CacheCompressor | None = field(default=None, kw_only=True)
    control: ControlKind = field(default="auto", kw_only=True)
    engine: EngineConfig | EngineKind = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("control", self.control, get_args(ControlKind))
        if not isinstance(self.compressor, CacheCompressor | None):
            raise ValueError(
                f"compressor must be a cache compressor or None, got {self.compressor!r}: give an object, such as "
                "HybridKV(budget=0.1)."
            )
        EngineConfig.of(self.engine)  # validates the settings
