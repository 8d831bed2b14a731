"""Answers compared with texts that are right."""

import pytest

from saccade.callbacks.decoding.quality import agreement, last_number, number_of

MILLION = 1_000_000


@pytest.mark.parametrize(
    ("text", "answers", "exact", "f1", "rouge"),
    [
        ("The 8:00 ferry.", ["8:00 ferry"], 1, 1.0, 6 / 7),  # articles and punctuation do not count for words
        ("room 318", ["318", "room 318"], 1, 1.0, 1.0),  # the best of several
        ("one two", ["two three"], 0, 0.5, 0.5),
        ("La gare est FERMÉE", ["la gare est fermée"], 1, 1.0, 1.0),
        ("", ["something"], 0, 0.0, 0.0),
        ("three two one", ["one two three"], 0, 1.0, 1 / 3),  # the order counts for ROUGE-L only
    ],
)
def test_agreement(text, answers, exact, f1, rouge):
    found = agreement(text, answers)
    assert found["answers_known"] == 1
    assert found["exact_matches"] == exact
    assert found["token_f1_millionths"] / MILLION == pytest.approx(f1, abs=1e-6)
    assert found["rouge_l_millionths"] / MILLION == pytest.approx(rouge, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("So 24 * 7 = 168 and 168 - 95 = 73.", "73", 1),
        ("73 bottles, of 168", "73", 0),  # the last number counts
        ("It costs $1,250.50", "1250.5", 1),
        ("#### 72", "He sold 24.\n#### 72", 1),
        ("none", "72", 0),
        ("-4", "4", 0),
        ("pages 3-5", "5", 1),
        ("40 %", "40%", 1),
        ("1,2,3", "3", 1),
    ],
)
def test_numbers(text, answer, right):
    found = agreement(text, [answer])
    assert (found["numbers_known"], found["numbers_right"]) == (1, right)


def test_texts_are_no_numbers():
    assert "numbers_known" not in agreement("72", ["72 clips"])
    assert [number_of(text) for text in ("72 clips", "", "a #### b", "€ 5", "x2")] == [None, None, None, 5.0, None]
    assert last_number("no 1st") == 1.0
    assert last_number("") is None
