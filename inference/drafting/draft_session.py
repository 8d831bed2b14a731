"""The draft model's session, which follows the committed texts of a generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade.common.timing import clock
from saccade.common.transfer import to_device
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.loading import known_tokens, to_vocabulary
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.session import Session
from saccade.inference.huggingface.models import text_config
from saccade.inference.reduction.draft_prompt import PrunedVideo
from saccade.inference.state import GenerationState
from saccade.inference.trees import MAX_NODES


class DraftSession:
    """Keeps the cache of a draft model in step with the committed texts.

    The session is opened by the first :meth:`catch_up`, when the length of the pruned prompts is known, so that its
    buffers are no longer than needed.

    Args:
        model: The draft model, on the target's device and with its vocabulary.
        extra: Slots beyond the prompts, for new tokens and the widest step.
        prompts: Token ids of all prompts of the batch.
        pool: Where graph engines are kept between calls; ``None`` is a pool of default settings.
        video: Prunes the videos that the draft reads; ``None`` for text.
        rollback: Drafted tokens that are committed to the draft's session in a round, and taken back if rejected.
    """

    def __init__(
        self,
        model: nn.Module,
        extra: int,
        prompts: Sequence[Sequence[int]],
        pool: EnginePool | None = None,
        video: PrunedVideo | None = None,
        rollback: int = 0,
    ) -> None:
        self.model, self.extra, self.pool, self.video, self.rollback = model, extra, pool, video, rollback
        self.prompts = [known_tokens(model, prompt) for prompt in prompts]
        self.rows = list(range(len(prompts)))
        self.prefill_seconds = 0.0
        self._pruned: list[int] = []  # number of prompt tokens of every row that the draft does not read
        self._opened: Session | None = None

    @property
    def session(self) -> Session:
        """The draft model's session.

        Raises:
            RuntimeError: Before the first :meth:`catch_up`.
        """
        if self._opened is None:
            raise RuntimeError("the draft model has not read its prompts yet: call catch_up first.")
        return self._opened

    def catch_up(self, state: GenerationState) -> Tensor:
        """Reads the tokens committed since the last call; the first call reads the prompts.

        Args:
            state: The generation.

        Returns:
            Logits after the texts, ``[batch, vocabulary of the target]``.
        """
        if self._opened is None:
            begin = clock(state.session.device)
            logits = self._read_prompts(state)
            self.prefill_seconds = clock(state.session.device) - begin
            if self.video is None:
                return self.fitted(logits, state)
        session = self.session
        ends = [len(text) - pruned for text, pruned in zip(state.texts, self._pruned, strict=True)]
        session.truncate([end - 1 for end in ends])
        pending = [
            known_tokens(self.model, text[length + pruned :])
            for text, length, pruned in zip(state.texts, session.lengths, self._pruned, strict=True)
        ]
        return self.fitted(self.read(pending), state)

    def read(self, pending: Sequence[Sequence[int]]) -> Tensor:
        """Reads further tokens of every row, and returns the logits after the last one of each.

        Args:
            pending: Token ids that the draft model knows, at least one for some row.

        Returns:
            ``[batch, vocabulary of the draft]``; of a row without tokens what is there means nothing.
        """
        session, longest = self.session, max(len(tokens) for tokens in pending)
        padded = to_device([[*tokens, *[0] * (longest - len(tokens))] for tokens in pending], session.device)
        found: Tensor | None = None
        # after many rounds without a draft there is more than fits in a step
        for begin in range(0, longest, MAX_NODES):
            part = padded[:, begin : begin + MAX_NODES]
            logits = session.forward(part)
            counts = [min(max(len(tokens) - begin, 0), part.shape[1]) for tokens in pending]
            session.commit([range(count) for count in counts])
            last = to_device([max(count - 1, 0) for count in counts], session.device)
            here = logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]
            if found is not None:
                here = torch.where(to_device([[count > 0] for count in counts], session.device) > 0, here, found)
            found = here
        assert found is not None  # noqa: S101 -- every row has at least one token
        return found

    def fitted(self, logits: Tensor, state: GenerationState) -> Tensor:
        """The draft model's logits in the width of the target's vocabulary."""
        return to_vocabulary(logits, text_config(state.session.model).vocab_size)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        self.rows = [self.rows[row] for row in rows]
        if self._opened is not None:
            self._opened.keep(rows)
            self._pruned = [self._pruned[row] for row in rows]

    def close(self) -> None:
        """Closes the draft model's session."""
        if self._opened is not None:
            self._opened.close()

    @property
    def forwards(self) -> int:
        """Number of forward calls of the draft model, prefill included."""
        return 0 if self._opened is None else self._opened.target_forwards

    @property
    def cache_bytes(self) -> int:
        """Size of the draft model's key-value buffers and states in bytes."""
        return 0 if self._opened is None else self._opened.cache_bytes

    def _read_prompts(self, state: GenerationState) -> Tensor:
        visual = None
        texts: Sequence[Sequence[int]] = [known_tokens(self.model, text) for text in state.texts]
        if self.video is not None:
            visual = self.video.prompts(self.model, state, self.rows, self.prompts)
            texts = [prompt.tokens for prompt in visual]
        read = [self.prompts[row] for row in self.rows] if visual is None else texts
        capacity = max(len(text) for text in read) + self.extra
        self._opened = session = Session(self.model, capacity, pool=self.pool, rollback=self.rollback)
        self._pruned = [0] * len(texts)
        if visual is not None:
            self._pruned = [len(self.prompts[row]) - len(text) for row, text in zip(self.rows, texts, strict=True)]
        return session.prefill(texts, visual)


class SessionDrafter(Drafter):
    """A drafter with a draft session; a subclass sets ``draft_session`` and defines ``draft``."""

    draft_session: DraftSession

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows of the draft's cache and drops the others."""
        self.draft_session.keep(rows)

    def close(self) -> None:
        """Closes the draft model's session."""
        self.draft_session.close()

    @property
    def forwards(self) -> int:
        """Number of forward calls of the draft model, prefill included."""
        return self.draft_session.forwards

    @property
    def cache_bytes(self) -> int:
        """Size of the draft model's key-value buffers in bytes."""
        return self.draft_session.cache_bytes

    @property
    def prefill_seconds(self) -> float:
        """Time in which the draft's prompts were pruned and read."""
        return self.draft_session.prefill_seconds
