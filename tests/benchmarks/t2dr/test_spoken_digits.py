"""Real recordings, images and spelled words become one data set of disjoint parts."""

import io
import pickle
import sys
import tarfile

import numpy as np
import pytest
from scipy.io import wavfile
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.t2dr import spoken_digits
from saccade.datamodules.multimodal.sentiment import MultimodalSentiment
from tests.support.shared_data import shared_file

LIMIT = 14


@pytest.fixture(scope="module")
def data():
    return spoken_digits.build(shared_file(spoken_digits.RECORDINGS), limit=LIMIT)


@pytest.fixture(scope="module")
def file(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("digits") / "digits.pkl"
    spoken_digits.write(data, path)
    return path


def test_every_recording_is_one_sample_of_the_customary_part(data):
    for part, allowed in (("test", range(5)), ("valid", range(5, 10)), ("train", range(10, LIMIT))):
        ids = data[part]["id"]
        assert len(ids) == len(set(ids)) == 10 * 6 * len(allowed)
        names = [name.split("$_$")[0].split("_") for name in ids]
        assert {int(index) for *_, index in names} == set(allowed)
        assert [int(digit) for digit, *_ in names] == data[part]["classification_labels"].tolist()


def test_images_are_of_the_digit_and_in_one_part_only(data):
    digits = load_digits()
    images = {part: [int(name.split("$_$")[1]) for name in data[part]["id"]] for part in data}
    for part, numbers in images.items():
        np.testing.assert_array_equal(digits.target[numbers], data[part]["classification_labels"])
        np.testing.assert_allclose(data[part]["vision"] * 16, digits.images[numbers])
    used = {part: set(numbers) for part, numbers in images.items()}
    assert not used["train"] & used["valid"] | used["train"] & used["test"] | used["valid"] & used["test"]
    assert all(len(used[part]) == len(images[part]) for part in ("valid", "test")), "each held-out image once"


def test_layout(data):
    for part in spoken_digits.PARTS:
        count = len(data[part]["id"])
        shapes = {name: data[part][name].shape[1:] for name in ("text", "audio", "vision", "text_bert")}
        assert shapes == {"text": (12, 16), "audio": (50, 24), "vision": (8, 8), "text_bert": (3, 12)}
        assert all(len(values) == count for values in data[part].values())
        for row, length in zip(data[part]["audio"], data[part]["audio_lengths"], strict=True):
            assert 1 <= length <= 50
            assert row[:length].any(1).all(), "a frame of zeros would be a missing one"
            assert not row[length:].any()
        assert all(np.isfinite(data[part][name]).all() for name in shapes)


def test_same_seed_same_data_and_a_sample_does_not_depend_on_the_limit(data):
    archive = shared_file(spoken_digits.RECORDINGS)
    again = spoken_digits.build(archive, limit=11)
    for name in ("text", "audio", "vision", "id"):
        np.testing.assert_array_equal(again["test"][name], data["test"][name])
    other = spoken_digits.build(archive, seed=1, limit=11)
    np.testing.assert_array_equal(other["test"]["audio"], data["test"]["audio"])
    assert not np.array_equal(other["test"]["text"], data["test"]["text"])
    assert not np.array_equal(other["test"]["vision"], data["test"]["vision"])


def test_every_modality_tells_the_digit_and_none_tells_all(data):
    """A linear classifier of few samples; chance is 0.1. On all samples the text gives 0.87."""
    train, test = data["train"], data["test"]
    for name in ("text", "audio", "vision"):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
        model.fit(train[name].reshape(len(train[name]), -1), train["classification_labels"])
        score = model.score(test[name].reshape(len(test[name]), -1), test["classification_labels"])
        assert 0.5 < score < 0.99, name


def test_the_datamodule_reads_it(data, file):
    module = MultimodalSentiment(path=str(file), task="classification", batch_size=16)
    module.prepare_data()
    module.setup("fit")
    assert module.classes == 10
    assert module.widths == {"text": 16, "audio": 24, "vision": 8}
    batch = next(iter(module.val_dataloader()))
    lengths = {name: modality.valid.sum(1).tolist() for name, modality in batch.modalities.items()}
    count = len(batch)
    assert lengths["audio"] == data["valid"]["audio_lengths"][:count]
    assert (lengths["text"], lengths["vision"]) == ([12] * count, [8] * count)
    assert batch.label.tolist() == data["valid"]["classification_labels"][:count].tolist()
    assert batch.present.all()


def test_log_mel_of_a_tone():
    """A tone of 1 kHz lies in the band around it; long recordings are averaged to at most 50 frames."""
    time = np.arange(8000) / 8000
    centre = np.argmax(spoken_digits.mel_filters()[:, 32])  # 32 bins of 31.25 Hz
    for seconds in (0.01, 0.3, 1.0, 4.0):
        tone = np.resize(np.sin(2 * np.pi * 1000 * time), int(8000 * seconds))
        frames = spoken_digits.log_mel(tone)
        assert 1 <= len(frames) <= 50
        assert frames.shape[1] == 24
        assert (frames.argmax(1) == centre).all()
    assert spoken_digits.log_mel(np.zeros(8000)).all()


def archive(path, name, rate):
    content = io.BytesIO()
    wavfile.write(content, rate, np.zeros(900, np.int16))
    with tarfile.open(path, "w:xz") as target:
        member = tarfile.TarInfo(name)
        member.size = len(content.getvalue())
        target.addfile(member, io.BytesIO(content.getvalue()))
    return path


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys):
    for path, reason in (
        (tmp_path / "none.tar.xz", "which is no file"),
        (archive(tmp_path / "a.tar.xz", "notes.wav", 8000), "a.tar.xz without"),
        (archive(tmp_path / "b.tar.xz", "3_theo_1.wav", 16000), "mono, 16 bit and 8000 Hz, got 3_theo_1.wav"),
    ):
        with pytest.raises(ValueError, match=rf"^recordings must [^\n]*{reason}[^\n]*$"):
            spoken_digits.build(path)
    with pytest.raises(ValueError, match="limit must be at least 11, got "):
        spoken_digits.build(tmp_path / "a.tar.xz", limit=10)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "out.pkl"), "--recordings", str(tmp_path / "a.tar.xz")])
    with pytest.raises(SystemExit):
        spoken_digits.main()
    assert "error: recordings must " in capsys.readouterr().err
    assert not (tmp_path / "out.pkl").exists()


def test_file_holds_arrays_and_plain_values_only(file, data):
    """As a restricted unpickler wants it."""
    seen = set()

    class Restricted(pickle.Unpickler):
        def find_class(self, module, name):
            seen.add(name)
            return super().find_class(module, name)

    with file.open("rb") as stream:
        loaded = Restricted(stream).load()
    assert seen <= {"_reconstruct", "ndarray", "dtype", "scalar"}
    np.testing.assert_array_equal(loaded["test"]["audio"], data["test"]["audio"])
    assert [path.name for path in file.parent.iterdir()] == ["digits.pkl"]
