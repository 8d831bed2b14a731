"""Strict verification: a drafted token is accepted where it is the target's own choice, greedy or drawn with noise."""

from __future__ import annotations

from saccade.inference.choice import Chooser
from saccade.inference.verification.draft import Draft, Verdict


def verify_choices(draft: Draft, choose: Chooser) -> list[Verdict]:
    """Accepts drafted tokens that are the target's own choice, so that the text is the one that it writes alone.

    Args:
        draft: The proposals.
        choose: The target's own choices (:func:`saccade.inference.choice.own_choices`).

    Returns:
        One verdict for each row: from the root down every child that holds the choice of its parent, and the choice at
        the last of them.

    Raises:
        ValueError: The logits hold NaN.
    """
    children = draft.shape().children
    verdicts = [Verdict() for _ in draft.counts]
    rows = list(range(len(verdicts)))
    while rows:
        chosen = choose(rows, [verdicts[row].path[-1] for row in rows])
        going_on = []
        for row, token in zip(rows, chosen, strict=True):
            path, count = verdicts[row].path, draft.counts[row]
            match = next((c for c in children[path[-1]] if c <= count and draft.ids[row][c - 1] == token), None)
            if match is None:
                verdicts[row].token = token
            else:
                path.append(match)
                going_on.append(row)
        rows = going_on
    return verdicts
