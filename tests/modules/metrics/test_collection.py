"""The metrics of a task: names, values, and sums over two processes."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from saccade.modules.metrics import metrics_for
from tests.modules.metrics import ddp_script
from tests.support.processes import run_ranks


def test_names():
    assert set(metrics_for("regression")) == {
        "mae", "corr", "acc_2_has0", "f1_has0", "acc_2_non0", "f1_non0", "acc_3", "acc_5", "acc_7"
    }  # fmt: skip
    assert set(metrics_for("regression", 1.0)) == {"mae", "corr", "acc_2", "f1", "acc_3", "acc_5"}
    assert set(metrics_for("classification", classes=4)) == {"accuracy", "f1"}


def test_metrics_that_begin_equal_stay_apart():
    """After a first batch that all classes get right, torchmetrics would merge the accuracies' states."""
    metrics = metrics_for("regression")
    metrics.update(torch.tensor([1.0]), torch.tensor([1.0]))
    metrics.update(torch.tensor([2.6, 1.0]), torch.tensor([1.4, -2.0]))
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert [values[name] for name in ("acc_3", "acc_5", "acc_7")] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert values["acc_2_has0"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("known", [5, 3])
def test_classification_against_scikit_learn(known):
    """Also when some classes never occur."""
    draw = np.random.default_rng(known)
    target = draw.integers(0, known, 300)
    logits = draw.normal(size=(300, 5)) + 2 * np.eye(5)[target]
    metrics = metrics_for("classification", classes=5)
    for part in np.array_split(np.arange(300), 4):
        metrics.update(torch.as_tensor(logits[part]), torch.as_tensor(target[part]))
    values = metrics.compute()
    assert float(values["accuracy"]) == pytest.approx(accuracy_score(target, logits.argmax(1)), abs=1e-6)
    assert float(values["f1"]) == pytest.approx(f1_score(target, logits.argmax(1), average="weighted"), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ranking",), "task"),
        (("regression", 2.0), "label_range"),
        (("classification",), "classes"),
        (("classification", 3.0, 1), "classes"),
    ],
)
def test_impossible_settings(arguments, word):
    with pytest.raises(ValueError, match=rf"^{word} must [^\n]*, got [^\n]*\.$"):
        metrics_for(*arguments)


def test_two_processes_agree_with_one(tmp_path):
    """Shares of 7 and 93 samples, and each rank without any."""
    run_ranks("tests.modules.metrics.ddp_script", tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert set(first) == {str(share) for share in ddp_script.SHARES}
    one = ddp_script.values(slice(0, 100))
    assert len(one) == 17
    for name, values in first.items():
        assert values == pytest.approx(one, rel=1e-6), name
