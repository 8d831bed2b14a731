"""What files hold as text: byte order marks, other encodings, invalid bytes, and the cuts between parts."""

import codecs

import pytest

from saccade.datamodules.text import reading
from saccade.datamodules.text.files import CorpusFile
from saccade.datamodules.text.reading import examine, text_blocks
from saccade.datamodules.text.splitting import split

TEXT = "größe 🙂\r\nzweite Zeile\n" * 30


def _source(folder, content: bytes):
    path = folder / "a.txt"
    path.write_bytes(content)
    return examine(CorpusFile("a.txt", path))


def _parts(source, cuts, unreadable=None) -> dict[str, str]:
    found: dict[str, str] = {}
    last: dict[str, bool] = {}
    for block in text_blocks(source, cuts, unreadable):
        assert not last.get(block.part)
        last[block.part] = block.last
        found[block.part] = found.get(block.part, "") + block.text
    assert all(last.values())
    return found


def _text(source, unreadable=None) -> str:
    return _parts(source, [("train", source.size)], unreadable)["train"]


@pytest.mark.parametrize(
    ("mark", "codec"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF8 * 2, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_byte_order_marks_are_no_text(tmp_path, mark, codec):
    unreadable: list[str] = []
    assert _text(_source(tmp_path, mark + TEXT.encode(codec)), unreadable) == TEXT
    assert unreadable == []


def test_a_mark_inside_of_a_text_is_kept(tmp_path):
    """There it is a blank of no width, not a mark."""
    assert _text(_source(tmp_path, "a\ufeffb".encode())) == "a\ufeffb"


@pytest.mark.parametrize("size", [4, 7, 64])
def test_blocks_do_not_change_the_text(tmp_path, size, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", size)
    for content in (TEXT.encode(), codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), b"\xef\xbb\xbf\xf0\x9f"):
        wanted = content.decode("utf-16" if content.startswith(b"\xff\xfe") else "utf-8-sig", "replace")
        assert _text(_source(tmp_path, content)) == wanted


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"one\ntwo\nthr\xe9e\nfour\xff\n", 3),
        (b"\xff\n", 1),
        (b"one\nhalf a pair: \xed\xa0\xbd\n", 2),
        (b"one\ncut off \xf0\x9f\x99", 2),
        (codecs.BOM_UTF16_LE + "one\ntwo\n".encode("utf-16-le") + b"\x3d\xd8x\0", 3),
    ],
)
@pytest.mark.parametrize("size", [1 << 18, 5])
def test_the_first_invalid_byte_is_named(tmp_path, content, line, size, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", size)
    unreadable: list[str] = []
    codec = "utf-16" if content.startswith(b"\xff\xfe") else "utf-8"
    assert _text(_source(tmp_path, content), unreadable) == content.decode(codec, "replace")
    assert unreadable == [f"{tmp_path / 'a.txt'}, line {line}"]


def test_a_replacement_character_of_the_author_is_valid(tmp_path):
    unreadable: list[str] = []
    assert _text(_source(tmp_path, "was \ufffd here".encode()), unreadable) == "was \ufffd here"
    assert unreadable == []


@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
@pytest.mark.parametrize("size", [1 << 18, 50])
@pytest.mark.parametrize("text", [TEXT * 20, "ein wort " * 500, "語" * 3000, "ab\n", "a b", "x", "line\n" * 9])
def test_parts_are_contiguous_and_lose_nothing(tmp_path, text, codec, size, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK_BYTES", size)
    source = _source(tmp_path, text.encode(codec))
    (cuts,) = split(["a.txt"], [source.size], 0.1, 0.2, 0).cuts
    parts = _parts(source, cuts)
    assert list(parts) == [part for part in ("train", "validation", "test") if part in parts]
    assert "".join(parts.values()) == text
    assert all(parts.values())
    if len(text) > 2000:
        for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
            assert len(parts[part]) == pytest.approx(share * len(text), abs=0.03 * len(text))
    if text.startswith(TEXT):
        assert all(part.endswith("\n") for part in parts.values())
    if text.startswith("ein wort"):
        assert all(part[0] == " " for name, part in parts.items() if name != "train")


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    source = _source(tmp_path, b"first")
    source.file.path.write_bytes(b"first, and more")
    with pytest.raises(
        ValueError, match="paths must name files that do not change while they are read, got "
    ) as caught:
        _text(source)
    assert "\n" not in str(caught.value)
    source.file.path.write_bytes(b"f")
    with pytest.raises(ValueError, match="paths must name files that do not change"):
        _text(source)


def test_what_is_no_text_is_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"^paths must name text files, got .*a\.txt, many bytes of which are 0, as in UTF-16"
    ) as caught:
        _text(_source(tmp_path, "plain words".encode("utf-16-le")))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"^paths must name files that can be read, got .*b\.txt \(No such file"
    ) as caught:
        examine(CorpusFile("b.txt", tmp_path / "b.txt"))
    assert "\n" not in str(caught.value)
