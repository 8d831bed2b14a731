"""The tables of README and docs: which pages have them, which folder makes them, and tables that no page has yet."""

from __future__ import annotations

import sys

import pytest

from benchmarks import tables
from benchmarks.decoding import tables as decoding_tables

PAGE = "# Title\n\n<!-- table decode_gpu -->\nold\n<!-- end -->\n\ntext\n"
ORIGIN = {"device": "a device", "commit": "0123456789", "versions": {"torch": "2", "transformers": "5"}, "runs": 3}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A README and pages, of which one asks for a table."""
    (tmp_path / "docs" / "reports").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# A page without tables\n")
    (tmp_path / "docs" / "reports" / "page.md").write_text(PAGE)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", tables.pages_with_tables(tmp_path))
    monkeypatch.setattr(tables, "TABLES", {"decode_gpu": lambda: "new"})
    return tmp_path


def test_pages_are_found_and_written(site, monkeypatch, capsys):
    page = site / "docs" / "reports" / "page.md"
    assert (page,) == tables.PAGES
    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 1
    assert capsys.readouterr().err == "docs/reports/page.md differs from benchmarks/results: run 'make tables'.\n"
    assert page.read_text() == PAGE
    monkeypatch.setattr(sys, "argv", ["tables"])
    assert tables.main() == 0
    assert page.read_text() == PAGE.replace("old", "new")
    monkeypatch.setattr(sys, "argv", ["tables", "--check"])
    assert tables.main() == 0


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"^table must be one of .*vector_search.*, got decoded: mend the page\.$"):
        tables.render("<!-- table decoded -->\n<!-- end -->\n")


def test_every_table_can_be_made():
    for name, table in tables.TABLES.items():
        assert table().startswith(("| ", "No rows yet: run `python -m benchmarks.")), name


def test_the_table_of_architectures(monkeypatch):
    common = ORIGIN | {"case": "shape, random weights", "metric": "ms_per_token", "bound": 3.0, "rows": 1}
    spread = {"min": 3.9, "median": 4.0, "max": 4.5}
    rows = [
        common | {"method": name, "value": 4.0, "spread": spread, "identical_rows": 1} for name in ("ours", "theirs")
    ]
    monkeypatch.setattr(decoding_tables, "read", lambda _: rows)
    lines = decoding_tables.architectures().splitlines()
    assert lines[2] == "| ours | 4.00 (3.90 to 4.50) | 75% | 1 of 1 |"
    assert lines[-1] == (
        "shape, random weights; a device, torch 2, transformers 5; commit 01234567; median of 3 runs."
        " Reading what a token needs takes 3.00 ms."
    )


def test_the_table_of_two_trees(monkeypatch):
    values = {"tokens_per_second_before": 10.0, "tokens_per_second_after": 20.0, "after_over_before": 2.0}
    rows = [
        ORIGIN | {"case": "case", "method": "PromptLookup", "metric": metric, "value": value, "identical_rows": 3,
                  "rows": 4, "spread": {"min": value, "median": value, "max": value}}
        for metric, value in values.items()
    ]  # fmt: skip
    monkeypatch.setattr(decoding_tables, "read", lambda _: rows)
    assert decoding_tables.before_after().splitlines()[2] == (
        "| PromptLookup | 10.00 (10.00 to 10.00) | 20.00 (20.00 to 20.00) | 2.00 (2.00 to 2.00) | 3 of 4 |"
    )
