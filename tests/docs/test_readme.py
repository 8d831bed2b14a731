"""The README and the pages agree with the repository: order, links, tables, trees, statistics."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.tables import PAGES as TABLE_PAGES
from benchmarks.tables import render
from saccade.cli.config_lookup import packaged_configs
from saccade.inference import DecodingStats
from tests.docs.pages import PAGES, ROOT, anchors, blocks, name_of, prose
from tests.support.decoders import METHODS

README = ROOT / "README.md"


def module_of(method: type) -> str:
    return method.__module__.rsplit(".", 1)[1]


def test_the_readme_is_short_and_in_order() -> None:
    text = README.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 160
    parts = (
        "# Saccade", "## Install", "make demo", "make test", "saccade fit", "## Example",
        "from saccade.inference import", "## Results", "<!-- table ", "<!-- end -->", "## Methods",
        "| decoder | paper | lossless | models tested |", "## Links",
    )  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "make test" in "\n".join(lines[:30]), "install and the two commands belong on the first screen"
    assert text.count("<!-- table ") == 1, "one table of results; further ones belong in docs/reports"
    headings = [number for number, line in enumerate(lines) if line.startswith("## ")]
    assert max(b - a for a, b in zip([0, *headings], [*headings, len(lines)], strict=True)) <= 30, "one screen a part"


def test_the_documentation_has_four_parts() -> None:
    inside = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*") if path.is_file()]
    folders = {path.parts[0] for path in inside if len(path.parts) > 1}
    assert folders == {"tutorials", "guides", "reference", "reports", "images"}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == {"index.md", "design.md"}
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings == ["Tutorials", "Guides", "Reference", "Reports"]


def test_the_start_page_links_to_every_page() -> None:
    """A decoder's page is linked by the README's table of methods."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+\.md)", prose(index))}
    pages = {page.resolve() for page in index.parent.rglob("*.md") if page.parent.name != "decoders"}
    assert pages - linked == {index.resolve()}


def test_tables_are_those_of_the_committed_rows() -> None:
    for page in TABLE_PAGES:
        text = page.read_text(encoding="utf-8")
        assert render(text) == text, "run: make tables"


def test_the_method_table_says_what_the_code_says() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\((\S+)\) \|.*\| (yes|no) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: (page, lossless) for name, page, lossless in rows} == {
        method.__name__: (f"docs/guides/decoders/{module_of(method)}.md", "yes" if method.lossless else "no")
        for method in METHODS
    }


def test_adding_a_decoder_takes_at_most_60_lines() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split("## How to add a decoder\n")[1], flags=re.MULTILINE)[0]
    assert len(section.splitlines()) + 1 <= 60


def test_every_packaged_config_is_named_on_a_page() -> None:
    told = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in packaged_configs() if name not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{name_of(page)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{name_of(page)} links to {target}"
        if page.is_relative_to(ROOT / "docs"):
            assert path.is_relative_to(ROOT / "docs"), f"{target} is not part of the site that {name_of(page)} is in"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page: Path) -> None:
    """Files in backquotes; ``x`` is the placeholder of a new method's name."""
    folders = "benchmarks|callbacks|cli|common|configs|datamodules|demo|docs|inference|modules|retrieval|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", prose(page)):
        assert Path(name).stem in ("x", "test_x") or (ROOT / name).exists(), f"{name_of(page)} names {name}"
    for name in re.findall(
        r"`((?:lm|decoder|decoding|missing|search|strategy|t2dr|trait|video)/[\w-]+\.yaml)`", prose(page)
    ):
        assert name in packaged_configs(), f"{name_of(page)} names {name}"


def test_the_tree_of_the_design_is_the_tree() -> None:
    tree = next(block.text for block in blocks(ROOT / "docs" / "design.md") if block.text.startswith("common/"))
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0]
        parent = parent if line.startswith(" ") else name
        assert (ROOT / (parent if parent == name else parent + name)).exists(), line
    named = set(re.findall(r"[\w/.]+", tree))
    packages = ["common", "retrieval", "datamodules", "inference", "modules", "callbacks", "cli", "configs"]
    assert {f"{name}/" for name in packages} <= named
    for folder in ("common", "inference"):  # every file of these, and every folder of the others
        assert _inside(folder, files=True) - named == set()
    for folder in ("datamodules", "modules", "callbacks"):
        assert _inside(folder, files=False) - named == set()


def _inside(folder: str, files: bool) -> set[str]:
    paths = [path for path in (ROOT / folder).iterdir() if path.name not in ("__init__.py", "__pycache__", "py.typed")]
    return {path.name + "/" * path.is_dir() for path in paths if files or path.is_dir()}


def test_every_page_is_in_the_navigation_once() -> None:
    def pages(entries: list) -> list[str]:
        return [p for e in entries for p in ([e] if isinstance(e, str) else pages(next(iter(e.values()))))]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(listed) == sorted(
        page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_api_entries_can_be_imported(page: Path) -> None:
    for name in re.findall(r"^::: (\S+)$", prose(page), flags=re.MULTILINE):
        package, last = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(package), last) or importlib.import_module(name), name


def test_every_statistic_is_explained() -> None:
    text = prose(ROOT / "docs" / "guides" / "decoding.md")
    derived = [name for name, item in vars(DecodingStats).items() if isinstance(item, property)]
    for name in [*derived, "acceptance_histogram", "target_forwards", "draft_forwards", "kv_cache_bytes"]:
        assert f"`{name}`" in text
