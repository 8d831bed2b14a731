"""The one decoding loop: draft, verify, commit. EOS, limits, streaming, statistics and batching exist here only."""

# Annotations stay objects here, unlike elsewhere: jsonargparse reads those that decoders inherit in the module of the
# decoder, where the names of this one mean nothing, and would take any value for every setting.
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saccade.inference.drafting.drafter import Drafter, NoDraft, Run
from saccade.inference.engine.config import EngineConfig, EngineKind
from saccade.inference.engine.observation import Observation
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.custom_generate import read_call
from saccade.inference.huggingface.models import is_sharded
from saccade.inference.huggingface.sublayer_skip import SublayerSkip
from saccade.inference.huggingface.vision import VISUAL_INPUTS
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.model_check import check_model
from saccade.inference.request import Request
from saccade.inference.row_tracker import RowTracker
from saccade.inference.sampling import Sampling
from saccade.inference.statistics import DecodingStats
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.greedy import verify_greedy
from saccade.inference.verification.rejection_sampling import verify_sampling
from saccade.inference.verification.relaxed.rule import AuditEntry


@dataclass
class GenerationOutput:
    """What a decoder returns.

    Args:
        sequences: ``[batch, length + new]`` token ids in the layout of ``model.generate``, on the device of the input:
            prompts padded on the left as wide as they were given, new tokens behind them, padded on the right.
        tokens: The new tokens of every row, EOS included.
        stats: Statistics of the whole call.
        per_request: Statistics of every row.
        audit: What a relaxed rule decided of every judged token of every row, with ``position`` its place among the
            new tokens; empty for strict decoders.
    """

    sequences: Tensor
    tokens: list[list[int]]
    stats: DecodingStats
    per_request: list[DecodingStats]
    audit: list[list[AuditEntry]] = field(default_factory=list)


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
    def floor(self) -> EnginePool:
        """What the decoder keeps from call to call for its engine; ``floor.clear()`` frees it."""
        if "_floor" not in vars(self):
            vars(self)["_floor"] = EnginePool(EngineConfig.of(self.engine))
        floor: EnginePool = vars(self)["_floor"]
        return floor

    @abstractmethod
    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """A fresh proposer for one generation."""

    def skipped(self, model: nn.Module) -> SublayerSkip | None:
        """Sub-layers of the target that drafting leaves out; most decoders leave out none."""
        return None

    def verify(self, logits: Tensor, draft: Draft, run: Run) -> list[Verdict]:
        """Judges a round; the strict rules by default. Relaxed decoders write their own."""
        if run.sampling is None:
            return verify_greedy(logits, draft)
        return verify_sampling(logits, draft, run.sampling, run.streams, run.session.floor)

    def observation(self, model: nn.Module) -> Observation | None:
        """What the target's session notes beside its logits; most decoders need nothing."""
        return None

    def generate(
        self,
        model: nn.Module,
        input_ids: Tensor,
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
            input_ids: ``[batch, length]`` token ids.
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
        return self._answer(model, request, input_ids, streamer, synced)

    def _answer(
        self, model: nn.Module, request: Request, input_ids: Tensor, streamer: Any = None, synced: bool = False
    ) -> GenerationOutput:
        """The output of a checked request, on the device of ``input_ids``; both doors end here."""
        check_model(model, request, self.floor.settings, synced)
        if streamer is not None:
            if len(request.prompts) != 1:
                raise ValueError(f"streamer needs a batch of 1, got {len(request.prompts)}: use stream() for batches.")
            streamer.put(input_ids.cpu())
        tally = RowTracker(request)
        for round_tokens in self._rounds(model, request, request.sampling, synced, tally):
            if streamer is not None and round_tokens[0]:
                streamer.put(torch.tensor(round_tokens[0]))
        if streamer is not None:
            streamer.end()
        sequences = request.sequences(tally.tokens).to(input_ids.device)
        return GenerationOutput(sequences, tally.tokens, tally.pooled, tally.rows, tally.audit)

    def stream(
        self,
        model: nn.Module,
        input_ids: Tensor,
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
            input_ids: ``[batch, length]``.
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
        request = Request.read(
            model,
            input_ids,
            attention_mask,
            max_new_tokens,
            max_length,
            eos_token_id,
            None,
            visual,
            do_sample=do_sample,
            sampling=sampling,
        )
        check_model(model, request, self.floor.settings)
        yield from self._rounds(model, request, request.sampling, False, RowTracker(request))

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
        out = self._answer(model, request, input_ids, synced=synced_gpus or is_sharded(model))
        return out if getattr(generation_config, "return_dict_in_generate", False) else out.sequences

    def join(self, model: nn.Module) -> None:
        """For a rank without prompts: takes part in the forwards of the other ranks' ``generate(synced=True)``."""
        with Session(model, 1, skip=self.skipped(model), synced=True) as session:
            session.drain()

    def _rounds(
        self, model: nn.Module, request: Request, sampling: Sampling | None, synced: bool, tally: RowTracker
    ) -> Iterator[list[list[int]]]:
        rows = list(range(len(request.prompts)))
        drafter = self.drafter(model, request)
        streams = [random.Random()] * len(rows) if sampling is None else sampling.streams(len(rows))
        try:
            capacity = request.positions + self.width
            with Session(
                model,
                capacity,
                skip=self.skipped(model),
                synced=synced,
                floor=self.floor,
                observation=self.observation(model),
            ) as session:
                tally.start(session, drafter)
                run = Run(session, [list(prompt) for prompt in request.prompts], sampling, streams, request.eos)
                if request.visual:
                    run.visual = read_visual_prompts(model, request.prompts, request.visual)
                # The prompt's last logits are a round with nothing drafted: the first token is the target's own.
                draft = NoDraft().draft(run, [])
                verdicts = self.verify(session.prefill(request.prompts, run.visual)[:, None], draft, run)
                tally.first_token()
                while True:
                    added = [draft.accepted(row, verdict) for row, verdict in enumerate(verdicts)]
                    logs = [verdict.log for verdict in verdicts]
                    tokens, unfinished = tally.emit(rows, added, draft.counts, logs)
                    for text, new in zip(run.texts, added, strict=True):
                        text.extend(new)
                    drafter.observe(run, draft, verdicts)
                    yield tokens
                    if len(unfinished) < len(rows):
                        if not unfinished:
                            break
                        run.keep(unfinished)
                        drafter.keep(unfinished)
                        rows = [rows[index] for index in unfinished]
                    draft = drafter.draft(run, [tally.remaining(row) - 1 for row in rows])
                    last = session.token_column([text[-1] for text in run.texts])
                    if draft.tokens.shape[1]:
                        last = torch.cat([last, draft.tokens.to(last.device)], 1)
                    logits = session.forward(last, draft.tree)
                    verdicts = self.verify(logits, draft, run)
                    session.commit([verdict.path for verdict in verdicts])
                session.drain()
                tally.finish()
        finally:
            drafter.close()
