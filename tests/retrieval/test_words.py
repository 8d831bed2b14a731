"""Words of scripts with and without blanks between words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.retrieval.words import MARKS, WORD, spaced


def words(text: str) -> list[str]:
    return WORD.findall(spaced(text).lower())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("你好，世界 hello", ["你好", "世界", "hello"]),
        ("信息检索", ["信息", "息检", "检索"]),
        ("iPhone手机A", ["iphone", "手机"]),
        ("水", ["水"]),
        ("東京タワーで水を", ["東京", "京タ", "タワ", "ワー", "ーで", "で水", "水を"]),
        ("人々・佐々木", ["人々", "佐々", "々木"]),
        ("한국어 검색", ["한국", "국어", "검색"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("𠮷野家", ["𠮷野", "野家"]),  # a character outside of the first plane
        ("ｶﾞｲﾄﾞ ＡＢＣ１２", ["ガイ", "イド", "abc12"]),  # half and full width
        ("हिन्दी में खोज", ["हिन्दी", "में", "खोज"]),  # vowel signs belong to the word
        ("தமிழ் தேடல்", ["தமிழ்", "தேடல்"]),
        ("cafe\u0301 über straße", ["café", "über", "straße"]),
        ("Привет мир", ["привет", "мир"]),
        ("naïve x y_z", ["naïve", "y_z"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted


def test_composed_and_decomposed_letters_meet() -> None:
    assert words("한국") == words("\u1112\u1161\u11ab\u1100\u116e\u11a8") == ["한국"]
    assert words("か\u3099") == words("が")


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_not_changed(text: str) -> None:
    assert spaced(text) is text
    assert words(text) == re.findall(r"\b\w\w+\b", text.lower())


@given(st.text())
def test_no_letter_is_lost(text: str) -> None:
    """Every run of letters of at least two is in some word, in any script."""
    joined = set("".join(words(text)))
    letters = "".join(re.findall(rf"[\w{MARKS}]{{2,}}", spaced(text).lower()))
    assert set(letters) <= joined
