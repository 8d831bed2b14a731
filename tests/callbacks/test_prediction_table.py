"""Predictions become one table, the same from one process and from two."""

import csv
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from saccade.callbacks.prediction_table import PredictionTable
from saccade.datamodules import TextCorpus
from saccade.modules import LanguageModel
from tests.callbacks.prediction_script import COUNT, KEYS, Data, Model, predict
from tests.callbacks.tiny import Rows, rows
from tests.support.processes import run_ranks

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_row_for_each_sample_in_the_order_of_the_data(tmp_path):
    text = predict(tmp_path)
    assert files(tmp_path) == ["predictions.csv"]
    header, *lines = csv.reader(text.splitlines())
    assert header == ["id", "value", "word", "half", "large", "key"]
    assert lines[3] == ['clip, "3"', "0.3", "w3", "0.30078125", "True", str(int(KEYS[3]))]
    assert [line[2] for line in lines] == [f"w{index}" for index in range(COUNT)]
    assert [torch.tensor(float(line[1])) for line in lines] == list(torch.arange(COUNT) / 10), "not a digit is lost"


def test_two_processes_write_what_one_writes(tmp_path):
    run_ranks("tests.callbacks.prediction_script", tmp_path)
    assert {"done0", "done1"} < set(files(tmp_path))
    table = predict(tmp_path / "alone")
    assert (tmp_path / "dealt" / "predictions.csv").read_text() == table
    assert (tmp_path / "padded" / "predictions.csv").read_text() == table
    assert (tmp_path / "twice" / "predictions.csv").read_text() == predict(tmp_path / "both", data=Data(loaders=2))
    assert (tmp_path / "one" / "predictions.csv").read_text() == "".join(table.splitlines(True)[:5])
    assert all(files(tmp_path / name) == ["predictions.csv"] for name in ("dealt", "padded", "twice", "one"))


def test_several_dataloaders_follow_each_other(tmp_path):
    table = predict(tmp_path / "one").splitlines()
    assert predict(tmp_path / "two", data=Data(loaders=2)).splitlines() == table + table[1:]


def test_equal_keys_of_one_process_are_all_kept(tmp_path):
    class Twins(Model):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {"key": torch.zeros_like(batch[0])}

    data = Data()
    data.sample_ids = None
    assert predict(tmp_path, Twins(), data) == "id,key\n" + "".join(f"{row},0\n" for row in range(COUNT))


def test_language_model_and_no_datamodule(tmp_path):
    module = LanguageModel(config={"model_type": "llama", "vocab_size": 31, "num_key_value_heads": 1, **SIZES}, seed=0)

    class Plain(Data):
        sample_ids = None

        def predict_dataloader(self):
            return DataLoader(Rows(rows(5)), batch_size=2)

    header, *lines = csv.reader(predict(tmp_path, module, Plain()).splitlines())
    assert header == ["id", "loss", "perplexity"]
    assert [line[0] for line in lines] == ["0", "1", "2", "3", "4"], "nothing names the sequences, so they are counted"
    assert all(float(line[1]) > 0 for line in lines)


def test_rows_of_a_text_corpus_name_the_file_and_the_place(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(3):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number} words, and again\n" * 30)
    corpus = TextCorpus(
        [str(tmp_path / "texts" / "*.txt")], vocab_size=270, sequence_length=16, batch_size=3,
        validation_fraction=0.2, test_fraction=0.4, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    module = LanguageModel(config={"model_type": "llama", "num_key_value_heads": 1, **SIZES}, seed=0)
    header, *lines = csv.reader(predict(tmp_path / "run", module, corpus).splitlines())
    assert header == ["id", "loss", "perplexity"]
    wanted = [name for batch in corpus.predict_dataloader() for name in batch["ids"]]
    assert [line[0] for line in lines] == wanted
    assert len(wanted) > 3
    assert all(re.fullmatch(r"\d\.txt token \d+", name) for name in wanted)


class Named(Data):
    """Batches that name their samples, as those of clips do."""

    sample_ids = None

    def __init__(self, names, **settings):
        super().__init__(**settings)
        self.names = names

    def predict_dataloader(self):
        return DataLoader([{"ids": self.names[:3]}, {"ids": self.names[3:]}], batch_size=None)


class Answers(Model):
    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return {"answer": [f"it is {place}" for place in range(len(batch["ids"]))]}


def test_the_names_of_a_batch_come_first(tmp_path):
    names = ["clips/a b.mp4", 'say "x".mp4', "größe.mp4", "half \ud83d.mp4", "line\nend"]
    table = predict(tmp_path, Answers(), Named(names))
    header, *lines = csv.reader(table.splitlines(keepends=True))
    assert header == ["id", "answer"]
    assert [line[0] for line in lines] == [*names[:3], "half \\ud83d.mp4", names[4]]
    assert [line[1] for line in lines] == [f"it is {place}" for place in (0, 1, 2, 0, 1)]


def test_names_of_another_number_are_one_line(tmp_path):
    class Fewer(Model):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return {"answer": ["one"]}

    with pytest.raises(
        ValueError, match=r"^ids of a batch must be one for each row of predict_step, got 3 for 1: [^\n]+$"
    ):
        predict(tmp_path, Fewer(), Named(["a", "b", "c", "d"]))
    assert files(tmp_path) == []


def test_samples_of_several_dataloaders_are_counted_in_each(tmp_path):
    data = Data(loaders=2)
    data.sample_ids = None
    _, *lines = csv.reader(predict(tmp_path, data=data).splitlines())
    assert [line[0] for line in lines] == [f"{loader}/{row}" for loader in (0, 1) for row in range(COUNT)]


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (torch.zeros(2, 1), r"got a tensor of shape \[2, 1\]: name each column"),
        ({}, "got an empty dictionary"),
        ([1.0], "got a list"),
        ({"value": torch.zeros(2, 3)}, r"got a tensor of shape \[2, 3\] for 'value'"),
        ({"value": torch.tensor(1.0)}, r"got a tensor of shape \[\] for 'value'"),
        ({"value": [1.0, 2.0]}, "got a list for 'value'"),
        ({"value": "ab"}, "got a str for 'value'"),
        ({"value": None}, "got None for 'value'"),
        ({"value": torch.zeros(2), "word": ["a"]}, r"columns of one length, got \{'value': 2, 'word': 1\}"),
        ({"other": torch.zeros(2)}, "the same columns for every batch"),
    ],
)
def test_anything_else_is_one_clear_line_and_leaves_no_file(tmp_path, output, reason):
    with pytest.raises(ValueError, match=rf"^predict_step must return [^\n]*{reason}[^\n]*$"):
        predict(tmp_path, Model(output))
    assert files(tmp_path) == []


def test_an_earlier_table_stays_when_a_run_fails(tmp_path):
    before = predict(tmp_path)
    with pytest.raises(ValueError, match="predict_step"):
        predict(tmp_path, Model("nothing"))
    assert (tmp_path / "predictions.csv").read_text() == before
    assert files(tmp_path) == ["predictions.csv"]


def test_fast_dev_run_writes_nothing(tmp_path):
    assert predict(tmp_path, fast_dev_run=True) is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["", "a/b.csv", ".", ".."])
def test_filename_must_be_plain(name):
    with pytest.raises(ValueError, match="filename must be the name of a file without a folder, got"):
        PredictionTable(name)
