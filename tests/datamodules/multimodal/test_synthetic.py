"""The generator of sentiment samples: reproducible, readable as a feature file, with the labels of CMU-MOSI."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.datamodules.multimodal.feature_files import read_features
from saccade.datamodules.multimodal.synthetic import SyntheticSentiment, draw_labels


def test_equal_settings_give_equal_samples_and_seeds_differ() -> None:
    one, same, other = (SyntheticSentiment(clips=(20, 5, 5), seed=seed).generate() for seed in (1, 1, 2))
    for split, arrays in one.items():
        for name, values in arrays.items():
            np.testing.assert_array_equal(values, same[split][name])
    assert not np.array_equal(one["train"]["text"], other["train"]["text"])


def test_the_written_file_is_read_back_and_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "features.pkl"
    for clips in ((3, 2, 2), (20, 5, 5)):
        SyntheticSentiment(clips=clips).write(path)
    file = read_features(path)
    assert [len(split.ids) for split in file.splits.values()] == [20, 5, 5]
    assert file.widths == {"text": 32, "audio": 5, "vision": 20}
    assert [entry.name for entry in path.parent.iterdir()] == ["features.pkl"]


def test_labels_are_distributed_as_in_cmu_mosi() -> None:
    labels = draw_labels(np.random.default_rng(0), 40_000)
    assert np.allclose(labels * 5, np.rint(labels * 5))
    shares = [float((np.rint(labels) == rounded).mean()) for rounded in range(-3, 4)]
    assert shares == pytest.approx([0.019, 0.155, 0.177, 0.193, 0.177, 0.244, 0.036], abs=0.01)
    assert float((labels == 0).mean()) == pytest.approx(0.041, abs=0.005)


def test_rows_of_zeros_can_be_switched_off() -> None:
    for zero_rows in (True, False):
        split = SyntheticSentiment(clips=(40, 1, 1), zero_rows=zero_rows).generate()["train"]
        spoken = np.arange(50) < np.array(split["audio_lengths"])[:, None]
        assert bool(((split["audio"] == 0).all(-1) & spoken).any()) is zero_rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clips": (3, 0, 2)}, "clips must be three numbers of at least 1"),
        ({"audio_width": 0}, "audio_width must be at least 1, got 0"),
        ({"text_error": -0.1}, "text_error must be at least 0, got -0.1"),
        ({"polarity_spread": float("nan")}, "polarity_spread must be at least 0, got nan"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticSentiment(**settings)
