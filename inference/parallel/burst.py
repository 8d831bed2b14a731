"""What the draft model writes in a round: in each forward what it confirms of a looked-up text, and one own token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.choice import best_tokens
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.loading import known_tokens
from saccade.inference.drafting.retrieval_store.retrieval_store import RetrievalStore
from saccade.inference.sampling import draw
from saccade.inference.state import GenerationState
from saccade.inference.trees import MAX_NODES

MOST_LOOKED_UP = 32
"""The most looked-up tokens of a forward."""
_MOST_MISSED = MAX_NODES - MOST_LOOKED_UP
"""Tokens that the draft may have missed and still reads together with a looked-up continuation."""


@dataclass
class Block:
    """What the draft model has written for a row.

    Args:
        tokens: The tokens.
        rows: For each token the distribution that it was drawn from, ``[vocabulary]``; ``None`` for a token that was
            picked: a looked-up one, or any without rejection sampling.
        looked_up: Looked-up tokens that the draft model was asked about.
        kept: Those among them that are its own choice.
        hits: Forwards for which something was found.
        forwards: Forwards of the row.
    """

    tokens: list[int] = field(default_factory=list)
    rows: list[Tensor | None] = field(default_factory=list)
    looked_up: int = 0
    kept: int = 0
    hits: int = 0
    forwards: int = 0

    def first(self, count: int) -> Block:
        """Its first tokens."""
        return Block(self.tokens[:count], self.rows[:count])

    def rest(self, begin: int) -> Block:
        """The block without its first tokens."""
        return Block(self.tokens[begin:], self.rows[begin:])


class DraftBurst:
    """Runs the draft model ahead of the verified texts.

    In each forward it reads what it has not read yet and a continuation that was looked up. The longest beginning of
    that which is its own choice is kept, and its own choice behind it is added (iterative retrieval speculation of
    Double, arXiv 2601.05524). Without look-up these are the tokens of an ordinary draft. Under rejection sampling a
    looked-up token is kept if it is the draft's best one, so it does not depend on chance; the added token is drawn.

    Args:
        draft_session: The draft model's session.
        looked_up: Most looked-up tokens of a forward; 0 looks nothing up.
        most: Most tokens of a block.
    """

    def __init__(self, draft_session: DraftSession, looked_up: int, most: int) -> None:
        self.draft_session = draft_session
        self.looked_up, self.most = looked_up, most
        self._held: list[list[int]] | None = None  # the tokens in the draft's cache
        self._agreed: list[int] = []  # leading ones among them that are known to be the text's

    def __call__(
        self,
        state: GenerationState,
        pending: Sequence[Sequence[int]],
        stores: Sequence[RetrievalStore],
        limits: Sequence[int],
        forwards: int,
    ) -> list[Block]:
        """Continues every text.

        Args:
            state: The generation.
            pending: Tokens behind the verified text of each row which are not verified yet.
            stores: What each row is looked up in.
            limits: Most tokens of each row; a row with 0 is not continued.
            forwards: Most forwards of the draft model.

        Returns:
            A block for each row, no longer than its limit, with nothing behind an EOS.
        """
        blocks = [Block() for _ in limits]
        left = [min(limit, self.most) for limit in limits]
        texts = [[*text, *after] for text, after in zip(state.texts, pending, strict=True)]
        ahead = replace(state, texts=texts)  # as if what is pending were verified
        for step in range(forwards):
            open_rows = [row for row, limit in enumerate(left) if len(blocks[row].tokens) < limit]
            if not open_rows:
                break
            if self._held is None:
                found: list[list[int]] = [[] for _ in blocks]
                logits = self._read_prompts(ahead)
            else:
                if step == 0:
                    self._agree(state, texts)
                found = self._look_up(open_rows, blocks, pending, stores, left)
                logits = self._forward(open_rows, texts, found, ahead)
            self._choose(logits, open_rows, found, blocks, left, ahead)
        return blocks

    def _look_up(
        self,
        open_rows: Sequence[int],
        blocks: Sequence[Block],
        pending: Sequence[Sequence[int]],
        stores: Sequence[RetrievalStore],
        limits: Sequence[int],
    ) -> list[list[int]]:
        """A continuation for each row that is open."""
        found: list[list[int]] = [[] for _ in blocks]
        for row in open_rows:
            block = blocks[row]
            room = limits[row] - len(block.tokens) - 1  # one is the draft's own
            if self.looked_up and room > 0:
                found[row] = stores[row].find(min(self.looked_up, room), [*pending[row], *block.tokens])
        return found

    def _read_prompts(self, ahead: GenerationState) -> Tensor:
        """Logits behind the texts, ``[batch, 1, vocabulary]``, where the draft has read nothing yet."""
        logits = self.draft_session.catch_up(ahead)[:, None]
        self._held = [list(text) for text in ahead.texts]
        self._agreed = [len(text) for text in ahead.texts]
        return logits

    def _agree(self, state: GenerationState, texts: Sequence[list[int]]) -> None:
        """Cuts the draft's cache where it holds something else than the texts."""
        held = self._held or []
        for row, text in enumerate(texts):
            most = min(len(held[row]), len(text) - 1)
            place = min(self._agreed[row], most)
            while place < most and held[row][place] == text[place]:
                place += 1
            del held[row][place:]
            self._agreed[row] = min(place, len(state.texts[row]))
        self.draft_session.session.truncate([len(row) for row in held])

    def _forward(
        self,
        open_rows: Sequence[int],
        texts: Sequence[list[int]],
        found: Sequence[Sequence[int]],
        ahead: GenerationState,
    ) -> Tensor:
        """Reads the texts and what was looked up behind them; the cache keeps both until it is cut.

        Returns:
            Logits behind the text and behind each looked-up token, ``[batch, 1 + looked up, vocabulary]``.
        """
        draft, session, held = self.draft_session, self.draft_session.session, self._held or []
        missed = [texts[row][len(held[row]) :] if row in open_rows else [] for row in range(len(texts))]
        if max(map(len, missed)) > _MOST_MISSED:  # after rounds without a draft, or many looked-up tokens of the target
            early = [tokens[:-1] for tokens in missed]
            draft.read([known_tokens(draft.model, tokens) for tokens in early])
            for row, tokens in enumerate(early):
                held[row] += tokens
            missed = [tokens[-1:] for tokens in missed]
        read = [[*tokens, *after] for tokens, after in zip(missed, found, strict=True)]
        width = max(map(len, read))
        padded = [[*known_tokens(draft.model, tokens), *[0] * (width - len(tokens))] for tokens in read]
        logits = session.forward(to_device(padded, session.device))
        session.commit([range(len(tokens)) for tokens in read])
        for row, tokens in enumerate(read):
            held[row] += tokens
        columns = 1 + max(map(len, found))
        places = [[min(max(len(tokens), 1) - 1 + step, width - 1) for step in range(columns)] for tokens in missed]
        index = to_device(places, session.device)[..., None].expand(-1, -1, logits.shape[-1])
        return draft.fitted(logits.gather(1, index), ahead)

    def _choose(
        self,
        logits: Tensor,
        open_rows: Sequence[int],
        found: Sequence[list[int]],
        blocks: Sequence[Block],
        limits: list[int],
        ahead: GenerationState,
    ) -> None:
        """Adds the kept tokens and the draft's own one to the blocks, and cuts the cache behind the kept ones."""
        held, session = self._held or [], self.draft_session.session
        drawn = ahead.sampling is not None and not ahead.noisy
        choices = best_tokens(logits, ahead, range(logits.shape[1]))[..., 0].tolist()
        for row in open_rows:
            block, own = blocks[row], choices[row]
            kept = 0
            while kept < len(found[row]) and found[row][kept] == own[kept]:
                kept += 1
            added: int = own[kept]
            distribution: Tensor | None = None
            if drawn and ahead.sampling is not None:
                distribution = ahead.sampling.probabilities(logits[row, kept])
                (added,) = draw(distribution[None], [ahead.streams[row].random()])
            tokens = [*found[row][:kept], added]
            del held[row][len(held[row]) - len(found[row]) + kept :]
            ended = next((place for place, token in enumerate(tokens) if token in ahead.eos), None)
            if ended is not None:
                tokens = tokens[: ended + 1]
                limits[row] = len(block.tokens) + len(tokens)  # nothing behind it
            rows = [*[None] * kept, distribution][: len(tokens)]
            block.tokens += tokens
            block.rows += rows
            block.looked_up += len(found[row])
            block.kept += kept
            block.hits += bool(found[row])
            block.forwards += 1
            ahead.texts[row] += tokens
        session.truncate([len(row) for row in held])

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the given rows and drops the others."""
        self.draft_session.keep(rows)
        if self._held is not None:
            self._held = [self._held[row] for row in rows]
            self._agreed = [self._agreed[row] for row in rows]
