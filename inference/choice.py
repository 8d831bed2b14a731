"""The token that a model chooses itself: the most likely one, or the one that the noise of its place draws.

Drafts and verification use the same functions. So greedy and sampled text are verified in one way: a drafted token is
accepted where it is the target's own choice.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saccade.common.transfer import to_device
from saccade.inference.sampling import NO_DISTRIBUTION

if TYPE_CHECKING:
    from saccade.inference.state import GenerationState

_MOST_NUMBERS = 1 << 25  # noise made at once: 0.25 GiB for each temporary tensor

Chooser = Callable[[Sequence[int], Sequence[int]], list[int]]
"""Gives the target's own choices at some nodes: ``choose(rows, nodes)`` has one token for each pair."""


def best_tokens(logits: Tensor, state: GenerationState, depths: Sequence[int], count: int = 1) -> Tensor:
    """The tokens that a draft model would choose, without waiting for the device.

    Args:
        logits: ``[rows, places, vocabulary]`` of the draft.
        state: The generation.
        depths: For each place, how many tokens lie between the end of the text and the token that is chosen there.
        count: Number of tokens of each place.

    Returns:
        ``[rows, places, count]`` ids, the best first. With rejection sampling these are the most likely tokens.
    """

    def best(scores: Tensor) -> Tensor:
        return scores.argmax(-1, keepdim=True) if count == 1 else scores.topk(count).indices

    if not state.noisy:
        return best(logits)
    rows = range(len(logits))
    # the next call of a captured function overwrites its result
    return _drawn(("best", count), best, logits, state, rows, [depths] * len(rows)).clone()


def own_choices(logits: Tensor, state: GenerationState, depths: Sequence[int]) -> Chooser:
    """The target's own choices at the nodes of a round.

    Where nothing has to be transferred, choices are computed for the nodes that are asked for, of which a round accepts
    few; elsewhere for all of them at once, with one transfer.

    Args:
        logits: ``[rows, nodes, vocabulary]`` of the target.
        state: The generation.
        depths: Depth of every node.

    Returns:
        A function of rows and nodes, which raises a ``ValueError`` where logits hold NaN.

    Raises:
        ValueError: The logits hold NaN.
    """
    if logits.device.type == "cpu":

        def compute(rows: Sequence[int], nodes: Sequence[int]) -> list[int]:
            asked = logits[list(rows), list(nodes)][:, None]
            return [token for (token,) in _chosen(asked, state, rows, [[depths[node]] for node in nodes])]

        return compute
    table = _chosen(logits, state, range(len(logits)), [depths] * len(logits))
    return lambda rows, nodes: [table[row][node] for row, node in zip(rows, nodes, strict=True)]


def _chosen(
    logits: Tensor, state: GenerationState, rows: Sequence[int], depths: Sequence[Sequence[int]]
) -> list[list[int]]:
    def best(scores: Tensor) -> Tensor:
        values, tokens = scores.max(-1)
        return tokens.masked_fill(values.isnan() | (values == -torch.inf), -1)

    found = _drawn("own", best, logits, state, rows, depths) if state.noisy else best(logits)
    choices: list[list[int]] = found.tolist()
    if any(-1 in row for row in choices):
        raise ValueError(NO_DISTRIBUTION)
    return choices


def _drawn(
    name: Hashable,
    best: Callable[[Tensor], Tensor],
    logits: Tensor,
    state: GenerationState,
    rows: Sequence[int],
    depths: Sequence[Sequence[int]],
) -> Tensor:
    """What is best by the noise of the rows' places; a row's depths are those of its places."""
    sampling = state.sampling
    if sampling is None:
        raise RuntimeError("greedy decoding has no noise: ask for the largest logits.")
    ends = [(state.keys[row], len(state.texts[row])) for row in rows]
    places = [[key, *(end + depth for depth in own)] for (key, end), own in zip(ends, depths, strict=True)]

    def drawn(given: Tensor, places: Tensor) -> Tensor:
        most = max(1, _MOST_NUMBERS // given[0].numel())
        parts = zip(given.split(most), places.split(most), strict=True)
        found = [best(sampling.perturbed(part, place[:, 0], place[:, 1:])) for part, place in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    run = state.session.pool.captured((name, sampling.warpers), drawn)
    result: Tensor = run(logits, to_device(places, logits.device))
    return result
