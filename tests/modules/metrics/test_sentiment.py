"""The cuts, against numpy and scikit-learn; constant predictors get what they deserve."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from saccade.modules.metrics import SentimentAccuracy, SentimentF1, sentiment_class


def result(metric, preds, target, batches=3):
    for pair in zip(torch.as_tensor(preds).chunk(batches), torch.as_tensor(target).chunk(batches), strict=True):
        metric.update(*pair)
    return float(metric.compute())


def sample(seed, count=500):
    """Predictions beyond the range and labels as annotators give them, many on the cuts."""
    draw = np.random.default_rng(seed)
    target = (draw.integers(-15, 16, count) / 5).astype(np.float32)
    preds = (target + draw.normal(0, 1.5, count)).astype(np.float32)
    on_cut = draw.random(count) < 0.3
    preds[on_cut] = draw.choice(np.arange(-8, 9) / 2, on_cut.sum())
    return preds, target


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    preds, target = sample(seed)
    for classes, limit in ((3, 1), (5, 2), (7, 3)):
        p, t = (np.round(np.clip(values, -limit, limit)) for values in (preds, target))
        assert result(SentimentAccuracy(classes), preds, target) == pytest.approx(accuracy_score(t, p), abs=1e-6)
    kept = target != 0
    for zeros, t, p in (("has0", target >= 0, preds >= 0), ("non0", target[kept] > 0, preds[kept] > 0)):
        accuracy, f1 = SentimentAccuracy(2, zeros=zeros), SentimentF1(zeros=zeros)
        assert result(accuracy, preds, target) == pytest.approx(accuracy_score(t, p), abs=1e-6)
        assert result(f1, preds, target) == pytest.approx(f1_score(t, p, average="weighted"), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_chinese_cuts_against_the_loops_of_the_field(classes):
    edges = {2: [-1.01, 0.0, 1.01], 3: [-1.01, -0.1, 0.1, 1.01], 5: [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]}[classes]
    draw = np.random.default_rng(0)
    target = (draw.integers(-5, 6, 400) / 5).astype(np.float32)
    preds = (target + draw.normal(0, 0.5, 400)).astype(np.float32)
    preds[:80] = draw.choice(np.float32([-0.7, -0.1, 0.0, 0.1, 0.7]), 80)

    def cut(values):
        values, found = np.clip(values, -1.0, 1.0), np.full(len(values), -1)
        for index in range(classes):
            found[(values > edges[index]) & (values <= edges[index + 1])] = index
        return found

    p, t = cut(preds), cut(target)
    assert sentiment_class(torch.as_tensor(preds), classes, 1.0).tolist() == p.tolist()
    assert result(SentimentAccuracy(classes, 1.0), preds, target) == pytest.approx(accuracy_score(t, p), abs=1e-6)
    if classes == 2:
        assert result(SentimentF1(1.0), preds, target) == pytest.approx(f1_score(t, p, average="weighted"), abs=1e-6)


def test_halves_go_to_the_even_number_and_zero_below_in_chinese():
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert (sentiment_class(halves, 7) - 3).tolist() == [-2, -2, 0, 0, 2, 2]
    assert sentiment_class(torch.tensor([-9.0, 9.0]), 7).tolist() == [0, 6]
    zero = torch.tensor([0.0, -0.0])
    assert sentiment_class(zero, 2).tolist() == [1, 1]
    assert sentiment_class(zero, 2, 1.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("constant", "counts", "zeros", "accuracy", "f1"),
    [
        (-0.5, (379, 30, 277), "non0", 57.77, 42.31),
        (-0.5, (379, 30, 277), "has0", 55.25, 39.32),
        (0.5, (1350, 1025, 2284), "non0", 62.85, 48.51),
        (0.5, (1350, 1025, 2284), "has0", 71.02, 58.99),
    ],
)
def test_constant_predictors(constant, counts, zeros, accuracy, f1):
    """The test splits of MOSI and MOSEI; with exchanged arguments F1 would be far above accuracy."""
    target = torch.repeat_interleave(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor(counts))
    preds = torch.full_like(target, constant)
    assert 100 * result(SentimentAccuracy(2, zeros=zeros), preds, target) == pytest.approx(accuracy, abs=0.005)
    got = 100 * result(SentimentF1(zeros=zeros), preds, target)
    assert got == pytest.approx(f1, abs=0.005)
    share = accuracy / 100
    trap = 100 * 2 * share / (1 + share)
    assert trap == pytest.approx({57.77: 73.24, 55.25: 71.17, 62.85: 77.19, 71.02: 83.06}[accuracy], abs=0.01)
    assert abs(got - trap) > 20


def test_what_is_not_a_number_is_wrong():
    target = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    preds = torch.full_like(target, float("nan"))
    for classes in (2, 3, 5, 7):
        assert result(SentimentAccuracy(classes), preds, target) == 0
    assert result(SentimentAccuracy(3, 1.0), preds, target) == 0
    assert result(SentimentF1(), preds, target) == 0


def test_nothing_that_counts_is_zero():
    zero = torch.zeros(3)
    assert result(SentimentAccuracy(2, zeros="non0"), zero, zero) == 0
    assert result(SentimentF1(zeros="non0"), zero, zero) == 0


def test_casts_of_the_module_leave_counts_and_precision_alone():
    metric = SentimentF1().to(torch.bfloat16)
    preds, target = sample(5, 2000)
    assert result(metric, preds, target) == result(SentimentF1(), preds, target)
    half = torch.tensor([-1.5, 0.5], dtype=torch.bfloat16)
    assert result(SentimentAccuracy(7), half, half, 1) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((4,), "classes"),
        ((7, 1.0), "classes"),
        ((2, 2.0), "label_range"),
        ((2, 3.0, "none"), "zeros"),
        ((3, 3.0, "non0"), "zeros"),
        ((2, 1.0, "non0"), "zeros"),
    ],
)
def test_impossible_cuts(arguments, word):
    with pytest.raises(ValueError, match=rf"^{word} must [^\n]*, got [^\n]*\.$"):
        SentimentAccuracy(*arguments)


def test_shapes_must_agree():
    for shape in ((3, 1), (4,)):
        with pytest.raises(ValueError, match="preds and target must have the same shape"):
            SentimentAccuracy(2).update(torch.zeros(shape), torch.zeros(3))
