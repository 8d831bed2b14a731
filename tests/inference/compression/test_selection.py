"""Which positions a head keeps: classes before scores, and pooling inside of images."""

from __future__ import annotations

import torch

from saccade.inference.compression.selection import best_positions, pooled, runs, text_prior, visual_sinks
from tests.inference.compression.compressors import prompt


def test_runs_are_numbered_in_order() -> None:
    assert runs(torch.tensor([-1, -1, 0, 1, 1, -1])).tolist() == [0, 0, 1, 2, 2, 3]
    assert runs(torch.tensor([3])).tolist() == [0]
    assert runs(torch.tensor([-1, -1, 0, -1, -1]), 1).tolist() == [0, 0, 1, 2, 3]
    assert runs(torch.tensor([-1, -1]), 2).tolist() == [0, 0]


def test_pooling_does_not_cross_a_border() -> None:
    scores = torch.tensor([[8.0, 0, 0, 0, 6, 0, 0, 0]])
    run = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    expected = torch.tensor([[8 / 3, 8 / 3, 8 / 3, 2, 2, 2, 0, 0]])
    torch.testing.assert_close(pooled(scores, run, 5), expected)
    assert pooled(scores, run, 3, "max").tolist() == [[8, 8, 0, 6, 6, 6, 0, 0]]
    assert pooled(scores, run, 1).equal(scores)
    # two texts with an image of one token between them are two runs, though both are text
    assert pooled(scores[:, :3], runs(torch.tensor([-1, 0, -1])), 5).tolist() == [[8, 0, 0]]


def test_classes_come_before_scores_and_of_equal_scores_the_earliest() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.5, 0.0, 1e-30]])
    classes = torch.tensor([0, 1, 0, 0, 1, 0])
    for cap, kept in enumerate(([], [1], [1, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4])):
        assert best_positions(scores, classes, [cap])[0].tolist() == kept


def test_no_score_is_as_good_as_a_class() -> None:
    assert best_positions(torch.tensor([[3e38, 0.0]]), torch.tensor([0, 1]), [1])[0].tolist() == [1]


def test_of_many_equal_scores_the_earliest_are_kept() -> None:
    kept = best_positions(torch.ones(1, 5000), torch.zeros(5000, dtype=torch.long), [700])
    assert kept[0].equal(torch.arange(700))


def test_heads_keep_different_numbers() -> None:
    scores = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    kept = best_positions(scores, torch.zeros(50, dtype=torch.long), [0, 50, 7])
    assert [len(positions) for positions in kept] == [0, 50, 7]
    assert set(kept[2].tolist()) == set(scores[2].topk(7).indices.tolist())


def test_the_text_prior_has_four_classes() -> None:
    visual, _ = prompt(10, ((1, 8),))
    assert text_prior(visual, 2, 1).tolist() == [4, 4, 0, 0, 0, 0, 0, 0, 2, 3]


def test_every_image_has_one_visual_sink_for_each_head() -> None:
    _, segments = prompt(8, ((1, 4), (4, 7)))
    scores = torch.tensor([[9, 1, 3, 3, 0, 0, 0, 9], [9, 2, 1, 0, 1, 2, 1, 9]], dtype=torch.float)
    assert [head.nonzero()[:, 0].tolist() for head in visual_sinks(scores, segments)] == [[2, 4], [1, 5]]
    assert not visual_sinks(scores, torch.full((8,), -1)).any()
