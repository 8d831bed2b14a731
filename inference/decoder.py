"""The contract of a decoder, and its doors."""

# Annotations stay objects here, unlike elsewhere: jsonargparse reads those that decoders inherit in the module of the
# decoder, where the names of this one mean nothing, and would take any value for every setting.
import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

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
    """Turns prompts into tokens with some Hugging Face causal language model.

    One object, three doors: ``decoder.generate(model, **inputs)`` returns a :class:`GenerationOutput`;
    ``model.generate(**inputs, custom_generate=decoder)`` returns what ``model.generate`` returns; in YAML it is a
    ``class_path`` with ``init_args``. Settings are fixed at construction; a call leaves nothing behind on the model.
    """

    lossless: ClassVar[bool] = True
    """Whether greedy output equals the target's own and sampled output has the target's distribution."""

    engine: EngineConfig | EngineKind = "auto"
    """How forwards run, how long prompts are read, how much the cache holds; each decoder's setting."""

    @property
    def width(self) -> int:
        """Most tokens that are drafted in a round."""
        return 0

    @property
    def pool(self) -> EnginePool:
        """The engines that the decoder keeps from call to call; :meth:`release` frees them."""
        if "_pool" not in vars(self):
            vars(self)["_pool"] = EnginePool(EngineConfig.of(self.engine))
        pool: EnginePool = vars(self)["_pool"]
        return pool

    @abstractmethod
    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """A fresh proposer for one generation."""

    def verifier(self, model: nn.Module, request: Request) -> Verifier:
        """A fresh judge for one generation: the strict rules by default. Relaxed decoders bring their own."""
        return StrictVerifier()

    def skipped(self, model: nn.Module) -> SublayerSkip | None:
        """Sub-layers of the target that drafting leaves out; most decoders leave out none."""
        return None

    def recording(self, model: nn.Module) -> Recording | None:
        """What the target's session records beside its logits; most decoders need nothing."""
        return None

    def check(self, model: nn.Module | None = None) -> None:
        """Refuses settings that cannot work, before any prompt is there.

        Args:
            model: The target, where it is known already; ``None`` checks what does not depend on it, such as paths.

        Raises:
            ValueError: Names what stands in the way.
        """
        if model is not None:
            check_supported(model)
            self.skipped(model)
            self.recording(model)

    def independent(self) -> Self:
        """A copy with the same settings: its results depend on no earlier call, and it keeps engines of its own."""
        twin = copy.copy(self)
        vars(twin).pop("_pool", None)
        return twin

    def release(self) -> None:
        """Frees what the decoder keeps from call to call: graphs, buffers and draft models that it has loaded."""
        if "_pool" in vars(self):
            self.pool.clear()

    def session(self, model: nn.Module, capacity: int, *, synced: bool = False) -> Session:
        """A session of the target as this decoder needs it, for several generations one after the other.

        Args:
            model: The target.
            capacity: Tokens of the longest text, with its new tokens, and :attr:`width`.
            synced: Agree with the other ranks before every forward.
        """
        return Session(
            model,
            capacity,
            skip=self.skipped(model),
            synced=synced,
            pool=self.pool,
            recording=self.recording(model),
        )

    def check_session(self, session: Session, model: nn.Module, capacity: int) -> None:
        """Refuses a session that does not serve a generation of this decoder.

        Raises:
            ValueError: Names what does not fit.
        """
        mend = "open it with decoder.session(model, capacity)"
        if session.model is not model:
            raise ValueError(f"session is of another model: {mend}.")
        if session.capacity < capacity:
            raise ValueError(f"session.capacity must be at least {capacity} tokens, got {session.capacity}: {mend}.")
        if skip_sets(self.skipped(model)) not in ((frozenset(), frozenset()), skip_sets(session.skip)):
            raise ValueError(f"session skips other sub-layers than {type(self).__name__} does: {mend}.")
        wanted = self.recording(model) or Recording()
        if wanted not in (Recording(), session.recording):
            raise ValueError(f"session does not record what {type(self).__name__} needs: {mend}.")

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
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        streamer: Any = None,
        synced: bool = False,
        **visual: Tensor,
    ) -> GenerationOutput:
        """Continues every prompt of a batch.

        Args:
            model: The target, a decoder-only Hugging Face model.
            input_ids: ``[batch, length]`` token ids, or a list of ids for each prompt, of any lengths.
            attention_mask: ``[batch, length]``, 0 at padding on either side; ``None`` when there is none.
            max_new_tokens: Most new tokens of a row, at least 1. Default: the model's generation config, else 20.
            max_length: Alternative limit: length of ``input_ids`` plus new tokens.
            sampling: How to draw tokens. ``None``: ``do_sample`` decides.
            do_sample: Whether tokens are drawn as the model's generation config says; ``False`` decodes greedily.
                ``None``: the generation config decides that too, as in ``model.generate``.
            eos_token_id: Ids that end a row; ``None`` takes the model's, ``()`` never stops early.
            pad_token_id: Id behind finished rows; ``None`` takes the model's, else the first EOS id, else 0.
            streamer: A transformers streamer (``put``, ``end``), for a batch of one. It is only handed verified tokens.
            synced: Agree with the other ranks before every forward, as sharded weights (ZeRO-3, FSDP) need.
            visual: Images and videos of all rows as a vision-language model's processor makes them:
                ``pixel_values_videos``, ``video_grid_thw``, ... Others are refused by name.

        Returns:
            The sequences and their statistics.

        Raises:
            ValueError: Empty prompt, prompt longer than the context, ids outside the vocabulary, impossible limits,
                videos that do not fit their placeholders, NaN logits, a setting of the generation config that cannot
                be followed (beams, penalties, ...), or a model that cannot be driven; the message names the value.
        """
        inputs: dict[str, Any] = dict(visual)
        try:
            run = self.start(
                model,
                input_ids,
                attention_mask,
                max_new_tokens=max_new_tokens,
                max_length=max_length,
                sampling=sampling,
                do_sample=do_sample,
                eos_token_id=eos_token_id,
                pad_token_id=pad_token_id,
                synced=synced,
                **inputs,
            )
            with run:
                if streamer is not None:
                    if len(run.request.prompts) != 1:
                        raise ValueError(
                            f"streamer must have a batch of 1, got {len(run.request.prompts)} prompts: use stream()."
                        )
                    streamer.put(torch.tensor(run.request.prompts))
                for tokens in run:
                    if streamer is not None and tokens[0]:
                        streamer.put(torch.tensor(tokens[0]))
        finally:
            if streamer is not None:  # also after an error: whoever reads from the streamer must not wait for ever
                streamer.end()
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
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        session: Session | None = None,
        synced: bool = False,
        **visual: Tensor,
    ) -> GenerationRun:
        """Begins a generation that the caller drives step by step; :meth:`generate` and :meth:`stream` do so.

        Args:
            model: As in :meth:`generate`, and so are the other arguments.
            input_ids: ``[batch, length]``, or a list for each prompt.
            attention_mask: ``[batch, length]``.
            max_new_tokens: Most new tokens of a row.
            max_length: Alternative limit.
            sampling: How to draw tokens.
            do_sample: Whether tokens are drawn where ``sampling`` is ``None``.
            eos_token_id: Ids that end a row.
            pad_token_id: Id behind finished rows.
            session: From :meth:`session`, to continue on: what it holds of the prompts is not read again, and it stays
                open. ``None`` opens one for this generation.
            synced: Agree with the other ranks before every forward.
            visual: Images and videos.

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
        )
        return self._run(model, request, session, synced)

    def _run(self, model: nn.Module, request: Request, session: Session | None, synced: bool) -> GenerationRun:
        """A run of a checked request; both doors pass here."""
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
        eos_token_id: int | Sequence[int] | None = None,
        **visual: Tensor,
    ) -> Iterator[list[list[int]]]:
        """Like :meth:`generate`, but yields every round's verified tokens, one list (maybe empty) for each row.

        Args:
            model: As in :meth:`generate`, and so are the other arguments.
            input_ids: ``[batch, length]``, or a list for each prompt.
            attention_mask: ``[batch, length]``.
            max_new_tokens: Most new tokens of a row.
            max_length: Alternative limit.
            sampling: How to draw tokens.
            do_sample: Whether tokens are drawn where ``sampling`` is ``None``.
            eos_token_id: Ids that end a row.
            visual: Images and videos.

        Yields:
            The new tokens of every row since the last round.
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
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        image_sizes: Tensor | None = None,
        batch_num_images: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerationOutput:
        """The door for ``model.generate(**inputs, custom_generate=decoder)``; transformers calls it.

        Seeds come from torch's global generator, as ``torch.manual_seed`` users expect. Streaming does not reach a
        ``custom_generate``: use :meth:`generate` or :meth:`stream`. transformers hands over untouched what the
        signature names, so images and videos arrive as the processor made them.

        Raises:
            ValueError: A generation setting that would be ignored (beams, penalties, ...), named.
        """
        visual = {name: value for name, value in locals().items() if name in VISUAL_INPUTS}
        request = read_call(
            model, input_ids, generation_config, logits_processor, stopping_criteria, visual | model_kwargs
        )
        # transformers keeps synced_gpus to itself when the decoding is custom
        with self._run(model, request, None, synced_gpus or is_sharded(model)) as run:
            for _ in run:
                pass
        out = run.output()
        return out if getattr(generation_config, "return_dict_in_generate", False) else out.sequences

    def join(self, model: nn.Module) -> None:
        """For a rank without prompts: takes part in the forwards of the other ranks' ``generate(synced=True)``."""
        with self.session(model, 1, synced=True) as session:
            session.drain()


@dataclass
class EngineDecoder(Decoder):
    """A decoder whose engine is a setting; the base of all methods.

    Args:
        engine: How forwards run: the name of a kind, or all settings (:class:`saccade.inference.EngineConfig`).

    Raises:
        ValueError: A setting of the engine outside its range.
    """

    engine: EngineConfig | EngineKind = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        EngineConfig.of(self.engine)  # refuses wrong settings
