"""Strict verification by rejection sampling (``coupling="rejection"``), with exactly the target's distribution.

Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), extended to trees: the
children of a node are tried in order, and each rejection subtracts the child's draft distribution from the target's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.sampling import NO_DISTRIBUTION, NO_DRAFT_DISTRIBUTION, Sampling, draw, draw_on_device
from saccade.inference.verification.draft import Draft, Verdict

if TYPE_CHECKING:
    from saccade.inference.engine.pool import EnginePool

_BROKEN_DRAFT = -2  # marks a row whose draft distribution holds NaN


def verify_sampling(
    logits: Tensor,
    draft: Draft,
    sampling: Sampling,
    streams: Sequence[random.Random],
    pool: EnginePool | None = None,
) -> list[Verdict]:
    """Accepts or rejects drafted tokens so that the output has exactly the target's sampling distribution.

    Args:
        logits: ``[batch, 1 + drafted, vocabulary]`` of the target at the root and the drafted tokens.
        draft: The proposals, with the distributions they were drawn from.
        sampling: The warpers that define the target's distribution.
        streams: One generator of random numbers for each row.
        pool: Provides a CUDA graph for the verification of chains; ``None`` runs its operations one by one.

    Returns:
        One verdict for each row.

    Raises:
        ValueError: The logits of the target or the draft hold NaN.
    """
    if draft.tree is None and draft.tokens.shape[1]:
        return _verify_chain(logits, draft, sampling, streams, pool)
    target = sampling.probabilities(logits)
    children = draft.shape().children
    ratios = _first_child_ratios(target, draft)
    verdicts, leftover = [], []
    for row, stream in enumerate(streams):
        path, rest = [0], target[row, 0]
        while True:
            node, rest = path[-1], target[row, path[-1]]
            accepted = -1
            for order, child in enumerate(c for c in children[node] if c <= draft.counts[row]):
                token = draft.ids[row][child - 1]
                proposal = None if draft.probabilities is None else draft.probabilities[row, child - 1]
                ratio = ratios[row][child - 1] if order == 0 else acceptance(rest, proposal, token)
                if stream.random() < ratio:
                    accepted = child
                    break
                rest = residual(rest, proposal, token)
            if accepted < 0:
                break
            path.append(accepted)
        verdicts.append(Verdict(path))
        leftover.append(rest)
    drawn = draw(torch.stack(leftover), [stream.random() for stream in streams])
    for verdict, token in zip(verdicts, drawn, strict=True):
        verdict.token = token
    return verdicts


def _verify_chain(
    logits: Tensor,
    draft: Draft,
    sampling: Sampling,
    streams: Sequence[random.Random],
    pool: EnginePool | None,
) -> list[Verdict]:
    """Verifies chains on the device. A row uses one random number per proposal and one for the added token."""
    columns = draft.tokens.shape[1]
    uniforms = [
        [*[stream.random() for _ in range(count)], *[0.5] * (columns - count), stream.random()]
        for stream, count in zip(streams, draft.counts, strict=True)
    ]
    device = logits.device
    inputs = [logits, draft.tokens.to(device)]
    inputs += [to_device(uniforms, device, torch.float64), to_device(draft.counts, device)]
    if draft.probabilities is not None:
        inputs.append(draft.probabilities.to(device))

    def verify(*tensors: Tensor) -> Tensor:
        return _chain_verdicts(sampling, *tensors)

    run = verify if pool is None else pool.captured(("chain", sampling.warpers), verify)
    verdicts: list[list[int]] = run(*inputs).tolist()
    if any(token == _BROKEN_DRAFT for _, token in verdicts):
        raise ValueError(NO_DRAFT_DISTRIBUTION)
    if any(token < 0 for _, token in verdicts):
        raise ValueError(NO_DISTRIBUTION)
    return [Verdict(list(range(accepted + 1)), token) for accepted, token in verdicts]


def _chain_verdicts(
    sampling: Sampling,
    logits: Tensor,
    tokens: Tensor,
    points: Tensor,
    counts: Tensor,
    proposals: Tensor | None = None,
) -> Tensor:
    """``[batch, 2]``: the number of accepted tokens, and the bonus or recovered token after them.

    The token is -1 where the target's logits hold NaN, and ``_BROKEN_DRAFT`` where the draft's do.

    Args:
        sampling: Defines the target's distribution.
        logits: ``[batch, 1 + drafted, vocabulary]``.
        tokens: ``[batch, drafted]``.
        points: ``[batch, drafted + 1]`` float64 in [0, 1): one for each proposal, and one for the added token.
        counts: ``[batch]`` number of proposals of every row.
        proposals: ``[batch, drafted, vocabulary]`` distributions of the draft; ``None`` for picked tokens.
    """
    target = sampling.probabilities(logits)
    drafted = tokens.shape[1]
    index = tokens[..., None]
    odds = target[:, :-1].gather(-1, index)
    if proposals is not None:
        odds = odds / proposals.to(odds).gather(-1, index)
    odds = odds[..., 0]
    counted = torch.arange(drafted, device=tokens.device) < counts[:, None]
    accepts = (points[:, :-1] < odds) & counted
    accepted = accepts.long().cumprod(1).sum(1)
    rest = target.gather(1, accepted[:, None, None].expand(-1, 1, target.shape[-1]))[:, 0]
    # the rejected proposal is subtracted from the target's distribution; after a fully accepted draft there is none
    rejected = accepted.clamp(max=drafted - 1)[:, None]
    if proposals is None:
        left = rest.scatter(1, tokens.gather(1, rejected), 0.0)
    else:
        drawn = proposals.to(rest).gather(1, rejected[..., None].expand(-1, 1, rest.shape[-1]))[:, 0]
        left = (rest - drawn).clamp(min=0)
        # nothing is left if draft and target are equal and a token was rejected by rounding: then draw from the target
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, rest)
    token = draw_on_device(torch.where((accepted < counts)[:, None], left, rest), points[:, -1])
    broken = (odds.isnan() & counted).any(1) | (token < 0)
    token = token.masked_fill(broken, -1)
    if proposals is not None:
        token = token.masked_fill((proposals.gather(-1, index)[..., 0].isnan() & counted).any(1), _BROKEN_DRAFT)
    return torch.stack([accepted, token], 1)


def _first_child_ratios(target: Tensor, draft: Draft) -> list[list[float]]:
    """Acceptance ratio p/q of every node as the first child of its parent, with one transfer from the device."""
    if draft.tokens.shape[1] == 0:
        return [[] for _ in draft.counts]
    parents = torch.tensor(draft.shape().parents[1:], device=target.device)
    index = draft.tokens.to(target.device)[..., None]
    odds = target[:, parents].gather(-1, index)[..., 0]
    if draft.probabilities is not None:
        proposals = draft.probabilities.to(odds).gather(-1, index)[..., 0]
        if bool(proposals.isnan().any()):
            raise ValueError(NO_DRAFT_DISTRIBUTION)
        odds = odds / proposals
    ratios: list[list[float]] = odds.tolist()
    if any(math.isnan(odd) for row in ratios for odd in row):
        raise ValueError(NO_DISTRIBUTION)
    return ratios


def acceptance(rest: Tensor, proposal: Tensor | None, token: int) -> float:
    """Acceptance ratio p/q of a token; ``rest`` need not sum to 1."""
    mass = rest[token] / rest.sum()
    return float(mass if proposal is None else mass / proposal[token].to(mass))


def residual(rest: Tensor, proposal: Tensor | None, token: int) -> Tensor:
    """The target's remaining distribution after ``token``, drawn from ``proposal``, was rejected."""
    if proposal is None:
        rest = rest.clone()
        rest[token] = 0
        return rest
    left = (rest / rest.sum() - proposal.to(rest)).clamp(min=0)
    # nothing is left if draft and target are equal and a token was rejected by rounding: then draw from the target
    return torch.where(left.sum() > 0, left, rest)
