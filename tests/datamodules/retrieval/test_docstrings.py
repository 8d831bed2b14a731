"""Docstring corpora: nothing is imported, nothing is trivial, nothing is there twice."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.datamodules.retrieval import docstrings as docstring_corpora
from saccade.datamodules.retrieval.docstrings import (
    SOURCES,
    TARGET,
    described_functions,
    docstring_documents,
    docstring_pairs,
    docstring_queries,
    docstring_task,
    is_package,
)

BODY = "    a = {0} + 1\n    b = a * {1}\n    c = b - a\n    return c\n"
CODE = '''"""Module."""
raise RuntimeError("this package was imported")


@decorated
def area(width, height):
    """Compute the area of some
    rectangle. It is called `area`.

    Args: none.
    """
    if width < 0:
        return area(-width, height)  # area, not areas
\x0c
    return width * height


class Box:
    """A box that is no function at all."""

    def fill(self, amount):
        r"""Fill the box up to \\d a given amount."""
        self.amount = amount
        self.filled = True
        return self

        def inner(self):
            """Say something that the outer function holds."""
            return 1

    def __len__(self):
        """Return how much is in the box now."""
        a = self.amount
        b = a
        return a + b


def short(x):
    """Return just what it was given."""
    return x


def terse(x):
    """Do it."""
    a = x
    b = a
    return b


def nothing(x):
    a = x
    b = a
    return b


def on_one_line(x): "Everything is on one line here"; return x


try:
    import fast
except ImportError:
    async def slow(x):
        """Wait for a slow thing to end."""
        await x
        y = x
        return y
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "made_package_x"
    root.mkdir()
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (root / "code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    described_functions.cache_clear()
    yield root
    described_functions.cache_clear()


def _named(root: Path) -> dict[str, tuple[str, str]]:
    described_functions.cache_clear()
    return {each.name.split(":")[1]: (each.sentence, each.code) for each in described_functions(root.name, 1000)}


def test_functions_are_cut_from_their_docstrings_without_import(package: Path) -> None:
    found = _named(package)
    assert list(found) == ["Box.fill", "area"]
    assert found["area"] == (
        "Compute the area of some rectangle.",
        "def function(width, height):\n    if width < 0:\n"
        "        return function(-width, height)  # function, not areas\n    return width * height",
    )
    sentence, code = found["Box.fill"]
    assert sentence == r"Fill the box up to \d a given amount."
    assert code.startswith("def function(self, amount):\n    self.amount = amount\n")
    assert package.name not in sys.modules


def test_repeated_sentences_and_near_copies_are_left_out(package: Path) -> None:
    words = " ".join(f"x{i} = g{i}(x{i + 1}, {i});" for i in range(40))
    for number, (sentence, body) in enumerate(
        [
            ("Compute what the first one computes", words),
            ("Compute what the second one computes", words.replace("g20", "other")),
            ("Compute something that is different", " ".join(f"y{i} = h[{i}];" for i in range(40))),
            ("Compute what the first one computes.", " ".join(f"z{i} = k{i}[{i}];" for i in range(40))),
        ]
    ):
        lines = "".join(f"    {line};\n" for line in body.rstrip(";").split("; "))
        (package / f"more{number}.py").write_text(f'def f{number}(a):\n    """{sentence}."""\n{lines}    return a\n')
    found = _named(package)
    assert len({"f0", "f1"} & set(found)) == 1
    assert "f2" in found
    sentences = [sentence.rstrip(".") for sentence, _ in found.values()]
    assert len(sentences) == len(set(sentences))


@pytest.mark.parametrize("place", ["tests/a.py", "_vendor/a.py", "x/externals/a.py", "test_a.py", "conftest.py"])
def test_tests_and_copies_are_not_read(package: Path, place: str) -> None:
    before = _named(package)
    (package / place).parent.mkdir(parents=True, exist_ok=True)
    text = f'def hidden(a):\n    """Compute what nobody should see here."""\n{BODY.format("a", "b")}'
    (package / place).write_text(text)
    assert _named(package) == before
    (package / "seen.py").write_text(text)
    assert set(_named(package)) == {*before, "hidden"}


def test_files_that_cannot_be_parsed_cost_nothing(package: Path) -> None:
    before = _named(package)
    doc = '    """Compute what is broken in this file."""\n'
    (package / "broken.py").write_text(f"def f(x:\n{doc}")
    (package / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\ndef f(x):\n" + doc.encode() + b"    # \xe9\n")
    (package / "null.py").write_bytes(b"def f(x):\n" + doc.encode() + b"\x00")
    assert _named(package) == before


def test_cap_stops_early_and_the_order_of_files_is_settled(package: Path) -> None:
    for number in range(30):
        body = "".join(f"    v{number} = w{number}_{line}({number * line})\n" for line in range(8))
        text = f'def f{number}(a):\n    """Compute the thing with number {number}."""\n{body}    return a\n'
        (package / f"file{number}.py").write_text(text)
    described_functions.cache_clear()
    few, all_of_them = docstring_pairs(package.name, 5), docstring_pairs(package.name, 100)
    assert (len(few), len(all_of_them)) == (5, 32)
    assert set(few) < set(all_of_them)
    assert len({pair.query for pair in few}) == 5
    described_functions.cache_clear()
    assert docstring_pairs(package.name, 5) == few


def test_task_has_one_relevant_document_for_each_sentence(package: Path) -> None:
    task = docstring_task(package.name)
    documents = docstring_documents(package.name)
    assert task.corpus == {name: document.text for name, document in documents.items()}
    assert set(task.queries.values()) == docstring_queries(package.name)
    # rankers leave out a document whose id is the query's
    assert not set(task.queries) & set(task.corpus)
    by_query = {pair.query: pair.document for pair in docstring_pairs(package.name)}
    for query, judged in task.qrels.items():
        ((document, grade),) = judged.items()
        assert (by_query[task.queries[query]], grade) == (task.corpus[document], 1)
    assert len(docstring_task(package.name, max_queries=1).queries) == 1


def test_what_is_not_there_ends_with_one_line(package: Path) -> None:
    with pytest.raises(ValueError, match="package 'no_such_thing' must be installed"):
        docstring_pairs("no_such_thing")
    (package / "code.py").write_text("x = 1\n")
    described_functions.cache_clear()
    with pytest.raises(ValueError, match="must have functions with docstrings"):
        docstring_pairs(package.name)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        docstring_pairs(package.name, 0)
    assert not is_package("os.path")
    assert is_package("python")


def test_embedded_packages_are_installed_and_large_enough() -> None:
    assert len(SOURCES) >= 8
    assert TARGET not in SOURCES
    assert all(map(is_package, (*SOURCES, TARGET)))


def test_a_real_package_gives_real_pairs() -> None:
    pairs = docstring_pairs(TARGET, 200)
    assert len(pairs) == len({pair.query for pair in pairs}) == len({pair.document for pair in pairs}) == 200
    for pair in pairs:
        assert pair.query not in pair.document
        assert pair.document.startswith(("def function", "async def function"))
        if len(pair.document) < docstring_corpora._LONGEST // 2:
            ast.parse(pair.document)


def test_single_modules_and_the_standard_library_are_sources() -> None:
    assert docstring_pairs("argparse", 5)
    pairs = docstring_pairs("python", 20)
    assert len(pairs) == 20
