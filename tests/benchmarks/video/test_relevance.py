"""The relevance study: AUCs of planted scores, classes of words, and scores that are those of the decoder."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import numpy as np
import pytest
import torch

from benchmarks.video import relevance as video_relevance
from benchmarks.video.prompts import HeldOut, default_config, load
from benchmarks.video.relevance import Study, classes, relevances, wins
from saccade.inference import LVSpec
from saccade.inference.huggingface.models import text_config
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.verification.relaxed import VisualRelaxation
from saccade.modules.language.vision_prompts import greedy_answers
from tests.support.video_checks import asked, video_model
from tests.support.video_models import FAMILIES, video_prompts

PLACES = ("judge", "draft", "max")
COMMON = ("--videos", "3", "--batch", "2", "--new-tokens", "12", "--device", "cpu")


def planted(scores: list[list[float]], kinds: list[list[str]]) -> Study:
    """A study of captions whose scores are known."""
    study = Study.__new__(Study)
    study.kinds = kinds
    study.scores = [{(0, "judge"): np.array(row, dtype=np.float32)} for row in scores]
    return study


KINDS = ["fact", "function", "content", "function", "other", ""]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.9, 0.1, 0.8, 0.2, 1.0, 1.0], 1.0),
        ([0.1, 0.9, 0.2, 0.8, 0.0, 0.0], 0.0),
        ([0.5, 0.5, 0.5, 0.5, 1.0, 0.0], 0.5),
        ([0.5, 0.5, 0.7, 0.6, 0.0, 0.0], 0.625),
    ],
    ids=["separable", "reversed", "ties", "mixed"],
)
def test_auc_of_planted_scores(scores: list[float], expected: float) -> None:
    study = planted([scores, scores], [KINDS, KINDS])
    assert study.auc((0, "judge"), "content") == (expected, expected, expected)  # both videos say the same


def test_auc_compares_within_a_caption_only() -> None:
    study = planted([[0.2, 0.1], [0.9, 0.8]], [["content", "function"]] * 2)
    assert study.auc((0, "judge"), "content") == (1.0, 1.0, 1.0)  # over both at once it would be 0.75


def test_auc_counts_every_pair_and_every_side() -> None:
    scores = [0.6, 0.5, 0.7, 0.4, 0.8, 0.9]
    study = planted([scores, [0.0, 1.0]], [KINDS, ["content", "function"]])
    point, low, high = study.auc((0, "judge"), "content")  # type: ignore[misc]
    assert (point, low, high) == (4 / 5, 0.0, 1.0)  # 4 of 4 pairs in one video, 0 of 1 in the other
    assert study.auc((0, "judge"), "facts")[0] == 1.0  # type: ignore[index]
    assert study.auc((0, "judge"), "facts_over_rest")[0] == 2 / 4  # type: ignore[index]
    assert planted([[0.5]], [["fact"]]).auc((0, "judge"), "content") is None


def test_wins_are_those_of_all_pairs() -> None:
    draw = np.random.default_rng(0)
    above, below = draw.integers(0, 5, 40).astype(float), draw.integers(0, 6, 30).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a in above for b in below]
    assert wins(above, below) == sum(pairs)


def test_classes_of_words() -> None:
    text = (
        "On a flat, uniform surface, just one digit can be seen. Then a big azure 7 drifts from right to left. "
        "The light of the left pen does not change"
    )
    named = {
        "fact": "flat uniform one big azure 7 right left",
        "content": "surface digit seen drifts light left pen change",
        "function": "On a can be a from to The of the does not",
        "other": ", , just . Then .",
    }
    pieces = re.findall(r" ?\w+|[^\w\s]", text)
    assert "".join(pieces) == text
    found = classes([*pieces, ""])
    assert found.pop() == ""
    for kind, words in named.items():
        assert [piece.strip() for piece, own in zip(pieces, found, strict=True) if own == kind] == words.split()
    parts = classes([" az", "ure", ",", " the", "re"])  # a token is of the class of the word that it is a part of
    assert parts == ["fact", "fact", "other", "function", "function"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_scores_are_those_of_the_decoder(family: str, place: str) -> None:
    """For a strict chain of which all drafts are accepted: one forward over the text scores the same tokens."""
    model, prompts = video_model(family), video_prompts(family, rows=2, seed=3)
    visual = asked(prompts)
    ids, mask = visual.pop("input_ids"), visual.pop("attention_mask")
    rows = [known[real.bool()].tolist() for known, real in zip(ids, mask, strict=True)]
    layers = [0, text_config(model).num_hidden_layers - 1, "norm"]
    for layer in layers:
        rule = VisualRelaxation(relaxation=0.0, pst_window=0)
        decoder = LVSpec(
            rule=rule, prune_ratio=0.0, draft_length=4, neighbours=3, layer=layer, score_at=place, engine="eager"
        )
        out = decoder.generate(model, max_new_tokens=14, **asked(prompts))
        whole = [[*prompt, *text] for prompt, text in zip(rows, out.tokens, strict=True)]
        for row, read in enumerate(read_visual_prompts(model, whole, visual)):
            scores = relevances(model, read, len(rows[row]), 3)[layer, place]
            assert len(scores) == len(out.tokens[row]) - 1
            judged = [entry for entry in out.audit[row] if entry.position < len(out.tokens[row])]
            assert len(judged) >= 8
            expected = [entry.relevance for entry in judged]
            assert scores[[entry.position - 1 for entry in judged]] == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def rows(monkeypatch):
    kept: list[dict] = []
    monkeypatch.setattr(video_relevance, "replace", kept.extend)
    return kept


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["video_relevance", *arguments])
    video_relevance.main()


def test_rows(video_run, rows, monkeypatch, capsys):
    def given(study, batch):
        """The clips' own captions: an untrained target writes no words."""
        data = study.data.data
        return [data.tokenizer.encode(data.answer(item, "test"), add_special_tokens=False) for item in batch.items]

    monkeypatch.setattr(Study, "captions", given)
    run(monkeypatch, "--target", str(video_run / "model"), *COMMON, "--frames", "6", "--size", "84")
    states = ["layer 0", "layer 1", "norm"]
    assert [row["method"] for row in rows] == [f"{state}, {place}" for state in states for place in PLACES]
    for row in rows:
        low, high = row["content_interval"]
        assert 0 <= low <= row["value"] == row["content"] <= high <= 1
        assert 0 <= row["facts"] <= 1
        assert 0 <= row["facts_over_rest"] <= 1
    assert {row["layer"] for row in rows} == {0, 1, "norm"}
    tokens = rows[0]["tokens"]
    assert set(tokens) == {"fact", "content", "function", "other"}
    assert min(tokens.values()) >= 3 * 4
    assert (rows[0]["videos"], rows[0]["video_tokens"]) == (3, 3 * 3 * 3)  # two frames make a layer of 3 x 3 tokens
    assert rows[0]["slot_accuracy"] == 1.0
    printed = capsys.readouterr().out
    assert f"{rows[0]['content']:.2f} (" in printed
    best = max(rows, key=lambda row: row["facts"])["method"]
    assert json.loads(printed.splitlines()[-1])["best"]["facts"] == best


def test_every_score_meets_the_class_of_its_token(video_run, rows, monkeypatch):
    caption = ((" red", 3.0), (" pen", 2.0), (",", 2.5), (" of", 1.0), (" the", 1.0), (" red", 3.0))
    tokens: list[int] = []
    planted: list[float] = []

    def given(study, batch):
        tokens.clear()
        planted.clear()
        for word, score in caption:
            own = study.data.data.tokenizer.encode(word, add_special_tokens=False)
            tokens.extend(own)
            planted.extend([score] * len(own))
        return [list(tokens)] * len(batch.items)

    def scored(model, read, start, neighbours):
        assert read.tokens[start:] == tokens
        return {(0, place): np.array(planted[1:]) for place in PLACES}  # the first token is not judged

    monkeypatch.setattr(Study, "captions", given)
    monkeypatch.setattr(video_relevance, "relevances", scored)
    run(monkeypatch, "--target", str(video_run / "model"), *COMMON)
    assert [(row["content"], row["facts"], row["facts_over_rest"]) for row in rows] == [(1.0, 1.0, 1.0)] * 3
    assert sum(rows[0]["tokens"].values()) == 3 * len(planted[1:])


def test_a_target_that_writes_no_words_is_refused(video_run, rows, monkeypatch):
    monkeypatch.setattr(Study, "captions", lambda study, batch: [[5, 5, 5]] * len(batch.items))
    with pytest.raises(SystemExit, match=r"^No caption of --target has both content and function words: train"):
        run(monkeypatch, "--target", str(video_run / "model"), *COMMON)
    assert rows == []


def test_the_targets_own_captions_are_taken(video_run, rows, monkeypatch):
    texts: list[list[int]] = []
    measured = Study.measure

    def seen(study):
        measured(study)
        texts.extend(study.texts)

    monkeypatch.setattr(Study, "measure", seen)
    with suppress(SystemExit):  # what it writes need not be words
        run(monkeypatch, "--target", str(video_run / "model"), *COMMON)
    folder = str(video_run / "model")
    model, held = load(folder, torch.float32), HeldOut(default_config(folder), folder, 3)
    assert texts == [greedy_answers(model, batch.inputs, 12)[0].tolist() for batch in held.prepare(model, 1)]
