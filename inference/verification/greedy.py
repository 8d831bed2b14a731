"""Strict greedy verification: a drafted token is accepted if it is the target's choice."""

from __future__ import annotations

from torch import Tensor

from saccade.inference.verification.draft import Draft, Verdict


def greedy_choices(logits: Tensor) -> list[list[int]]:
    """The target's choices: the token of the largest logit at every node.

    Args:
        logits: ``[batch, nodes, vocabulary]``.

    Returns:
        ``[batch][nodes]`` ids.

    Raises:
        ValueError: The logits hold NaN.
    """
    values, indices = logits.max(-1)
    choices: list[list[int]] = indices.masked_fill(values.isnan(), -1).tolist()
    if any(-1 in row for row in choices):
        raise ValueError("the model's logits hold NaN: check its weights and its precision.")
    return choices


def verify_greedy(logits: Tensor, draft: Draft) -> list[Verdict]:
    """Accepts drafted tokens that are the target's choice, so that the output equals that of greedy decoding.

    Args:
        logits: ``[batch, 1 + drafted, vocabulary]`` of the target at the root and the drafted tokens.
        draft: The proposals.

    Returns:
        One verdict for each row.

    Raises:
        ValueError: The logits hold NaN.
    """
    children = draft.shape().children
    verdicts = []
    for row, chosen in enumerate(greedy_choices(logits)):
        path = [0]
        while True:
            node = path[-1]
            match = [c for c in children[node] if c <= draft.counts[row] and draft.ids[row][c - 1] == chosen[node]]
            if not match:
                break
            path.append(match[0])
        verdicts.append(Verdict(path, chosen[path[-1]]))
    return verdicts
