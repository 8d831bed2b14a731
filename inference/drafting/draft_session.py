"""A draft model's session that follows the target's texts, with or without all of their video."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from saccade.common.timing import clock
from saccade.common.transfer import to_device
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.engine.pool import EnginePool
from saccade.inference.engine.session import Session
from saccade.inference.reduction.draft_prompt import PrunedVideo
from saccade.inference.state import GenerationState


class DraftSession:
    """Keeps a draft model's cache at the committed texts.

    Its session opens at the first call, when it is known how much of the prompts the draft reads: the buffers are as
    long as that and no longer.

    Args:
        model: The draft model, on the target's device and with its vocabulary.
        extra: Slots beyond the prompts: new tokens and the widest step.
        prompts: Token ids of all prompts of the batch.
        pool: Engines that are kept from call to call; ``None`` runs eagerly.
        video: How much of the videos the draft reads; ``None`` for text.
    """

    def __init__(
        self,
        model: nn.Module,
        extra: int,
        prompts: Sequence[Sequence[int]],
        pool: EnginePool | None = None,
        video: PrunedVideo | None = None,
    ) -> None:
        self.model, self.extra, self.pool, self.video = model, extra, pool, video
        self.prompts = prompts
        self.rows = list(range(len(prompts)))
        self.prefill_seconds = 0.0
        self._gone: list[int] = []  # tokens of every row's prompt that the draft does not read
        self._open: Session | None = None

    @property
    def session(self) -> Session:
        """The draft model's session.

        Raises:
            RuntimeError: Before the first :meth:`catch_up`.
        """
        if self._open is None:
            raise RuntimeError("the draft has not read its prompts yet: catch_up comes first.")
        return self._open

    def catch_up(self, state: GenerationState) -> Tensor:
        """Reads what was committed since the last call: at first the prompts.

        Args:
            state: The generation.

        Returns:
            Logits behind the texts, ``[batch, vocabulary]``.
        """
        if self._open is None:
            begin = clock(state.session.device)
            logits = self._read_prompts(state)
            self.prefill_seconds = clock(state.session.device) - begin
            if self.video is None:
                return logits
        session = self.session
        ends = [len(text) - gone for text, gone in zip(state.texts, self._gone, strict=True)]
        session.truncate([end - 1 for end in ends])
        pending = [
            text[length + gone :] for text, length, gone in zip(state.texts, session.lengths, self._gone, strict=True)
        ]
        longest = max(len(tokens) for tokens in pending)
        padded = to_device([tokens + [0] * (longest - len(tokens)) for tokens in pending], session.device)
        logits = session.forward(padded)
        session.commit([range(len(tokens)) for tokens in pending])
        last = to_device([len(tokens) - 1 for tokens in pending], session.device)
        return logits.gather(1, last[:, None, None].expand(-1, 1, logits.shape[-1]))[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows."""
        self.rows = [self.rows[row] for row in rows]
        if self._open is not None:
            self._open.keep(rows)
            self._gone = [self._gone[row] for row in rows]

    def close(self) -> None:
        """Gives the draft model back as it was."""
        if self._open is not None:
            self._open.__exit__(None, None, None)

    @property
    def forwards(self) -> int:
        """Forward calls of the draft model, its prefill included."""
        return 0 if self._open is None else self._open.target_forwards

    @property
    def cache_bytes(self) -> int:
        """Size of the draft's buffers."""
        return 0 if self._open is None else self._open.storage.bytes

    def _read_prompts(self, state: GenerationState) -> Tensor:
        visual = None
        texts: Sequence[Sequence[int]] = state.texts
        if self.video is not None:
            visual = self.video.prompts(self.model, state, self.rows, self.prompts)
            texts = [prompt.tokens for prompt in visual]
        read = [self.prompts[row] for row in self.rows] if visual is None else texts
        session = Session(self.model, max(len(text) for text in read) + self.extra, pool=self.pool)
        self._open = session.__enter__()
        self._gone = [0] * len(texts)
        if visual is not None:
            self._gone = [len(self.prompts[row]) - len(text) for row, text in zip(self.rows, texts, strict=True)]
        return session.prefill(texts, visual)


class SessionDrafter(Drafter):
    """A drafter whose state is a draft session; a subclass sets ``draft_session`` and writes how it drafts."""

    draft_session: DraftSession

    def keep(self, rows: Sequence[int]) -> None:
        """Drops finished rows from the draft's cache."""
        self.draft_session.keep(rows)

    def close(self) -> None:
        """Gives the draft model back as it was."""
        self.draft_session.close()

    @property
    def forwards(self) -> int:
        """Forward calls of the draft model, its prefill included."""
        return self.draft_session.forwards

    @property
    def cache_bytes(self) -> int:
        """Size of the draft's buffers."""
        return self.draft_session.cache_bytes

    @property
    def prefill_seconds(self) -> float:
        """Time of choosing and reading the draft's prompts."""
        return self.draft_session.prefill_seconds
