"""Words of a text for search by words, in scripts with and without blanks between words.

`saccade.modules.retrieval.sentence_export` copies this file into exported folders, so it must not import the rest of
the package.
"""

from __future__ import annotations

import re
import unicodedata

UNSPACED = (
    # Han
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303c\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Hiragana and Katakana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb\uffa0-\uffdc"  # Hangul
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0edc-\u0edf"  # Thai and Lao
    # Burmese and Khmer
    "\u1000-\u103f\u1050-\u108f\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f\u1780-\u17d3\u17d7\u17dc\u17dd"
)
"""Characters of Chinese, Japanese, Korean, Thai, Lao, Khmer and Burmese, the inside of a class of a regular expression.

Korean has blanks between words, but its particles are joined to them.
"""

# signs that belong to the letter before them, which `\w` leaves out: vowels of Hindi, Tamil and others, accents
MARKS = "".join(
    re.escape(chr(code)) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
"""Combining marks, the inside of a class of a regular expression."""

WORD = re.compile(rf"[\w{MARKS}]{{2,}}|[{UNSPACED}]")
"""A word of at least two letters or digits, or one character of `UNSPACED`; for the result of `spaced`."""

_RUN = re.compile(f"[{UNSPACED}]+")


def spaced(text: str) -> str:
    """Put blanks around the words of scripts that are written without them.

    A run of such characters becomes its overlapping pairs, as in Lucene's CJKAnalyzer: a query finds the texts that
    have pairs of characters in common with it, and no dictionary is needed. A character alone stays one. Full-width
    letters, half-width katakana and composed characters get their usual forms (NFKC). ASCII text is not changed.

    Args:
        text: Any text.

    Returns:
        The text, in which blanks and punctuation separate words.
    """
    if text.isascii():
        return text
    return _RUN.sub(_pairs, unicodedata.normalize("NFKC", text))


def _pairs(match: re.Match[str]) -> str:
    run = match[0]
    return f" {' '.join(run[at : at + 2] for at in range(max(1, len(run) - 1)))} "
