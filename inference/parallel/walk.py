"""One walk over what the target has read and what the draft has written meanwhile, exact under rejection sampling.

The rule is ours: every token is accepted or replaced by the ordinary rule of speculative sampling, with a proposal that
was drawn from the stated distribution or is a function of the text before it. So texts have the target's distribution.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from saccade.inference.parallel.burst import Block
from saccade.inference.sampling import draw
from saccade.inference.verification.rejection_sampling import acceptance, residual


@dataclass
class Outcome:
    """The outcome of a round for a row.

    Args:
        tokens: What is added to the text, at least one token. All but the last are what the target has read.
        pending: What stays of the draft's block behind them.
    """

    tokens: list[int]
    pending: Block


def walk(rows: Tensor, pending: Block, candidate: Sequence[int], block: Block, stream: random.Random) -> Outcome:
    """Verifies what was pending, then follows the target's candidate and the draft's block together.

    Args:
        rows: ``[1 + pending + candidate, vocabulary]``, the target's distributions behind the text and behind each
            token that it has read.
        pending: Tokens that the draft has written in earlier rounds.
        candidate: Looked-up tokens behind them, which the target has read too.
        block: What the draft has written behind ``pending`` meanwhile.
        stream: Random numbers of the row.

    Raises:
        ValueError: The logits hold NaN.
    """
    out: list[int] = []
    for place, (token, proposal) in enumerate(zip(pending.tokens, pending.rows, strict=True)):
        drawn, accepted = _judge(rows[place], token, proposal, stream)
        out.append(drawn)
        if not accepted:
            return Outcome(out, Block())
    step, with_block = 0, True
    while True:
        row = rows[len(pending.tokens) + step]
        if with_block and step < len(block.tokens):
            drawn, accepted = _judge(row, block.tokens[step], block.rows[step], stream)
            with_block = accepted
        elif step < len(candidate):
            drawn, accepted = _judge(row, candidate[step], None, stream)
            with_block = False
        else:  # nothing is proposed
            out += draw(row[None], [stream.random()])
            return Outcome(out, Block())
        out.append(drawn)
        step += 1
        if step > len(candidate) or drawn != candidate[step - 1]:  # the target has not read this token
            return Outcome(out, block.rest(step) if with_block else Block())


def _judge(row: Tensor, token: int, proposal: Tensor | None, stream: random.Random) -> tuple[int, bool]:
    """The token that takes a place, and whether it is the proposed one by the draw of its acceptance."""
    if proposal is not None:
        proposal = proposal.to(row.device)
    if stream.random() < acceptance(row, proposal, token):
        return token, True
    (drawn,) = draw(residual(row, proposal, token)[None], [stream.random()])
    return drawn, False
