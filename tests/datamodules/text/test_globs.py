"""Globs find what glob finds, each real file once and under the best name, and come to an end."""

import glob
import os
from pathlib import Path

import pytest

from saccade.datamodules.text.globs import files_matching


def _write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def _names(pattern: Path) -> list[str]:
    return sorted(name for name, _, _ in files_matching(str(pattern)))


@pytest.mark.parametrize(
    "pattern",
    [
        "a.txt", "*.txt", "**", "**/*.txt", "**/*", "*/*.txt", "*/**/*.txt", "**/deep/**/*.txt", "**/**/c.txt",
        "d*/b.txt", "deep/*.txt", "deep/**/../*.txt",
        "[ab].txt", "**/.hidden/*.txt", ".*", "*", "nothing/*.txt", "a.txt/*",
        "**/er", "deep/./*.txt", "?.txt", "**/*.TXT",
    ],
)  # fmt: skip
def test_without_links_it_is_glob(tmp_path: Path, pattern: str) -> None:
    _write(tmp_path, "a.txt", "b.md", ".dot.txt", "deep/b.txt", "deep/er/c.txt", "deep/er/deep/d.txt", ".hidden/e.txt")
    (tmp_path / "empty").mkdir()
    found = files_matching(str(tmp_path / pattern))
    wanted = {os.path.realpath(path) for path in glob.glob(str(tmp_path / pattern), recursive=True)}
    assert {real for _, _, real in found} == {path for path in wanted if Path(path).is_file()}
    assert all(os.path.realpath(path) == real for _, path, real in found)


def test_links_in_a_circle_end_and_names_have_the_fewest_links(tmp_path: Path) -> None:
    names = ["0.txt", "a/1.txt", "a/b/c/2.txt"]
    _write(tmp_path, *names)
    links = {"me": ".", "a/up": "..", "a/again": "../me", "a/b/c/top": str(tmp_path), "short": "a/b/c", "self": "self"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    assert _names(tmp_path / "**" / "*.txt") == names
    assert _names(tmp_path / "**" / "c" / "**" / "*.txt") == ["a/b/c/2.txt", "a/b/c/top/0.txt", "a/b/c/top/a/1.txt"]


def test_two_folders_that_lead_into_each_other(tmp_path: Path) -> None:
    _write(tmp_path, "one/a.txt", "two/b.txt")
    (tmp_path / "one" / "other").symlink_to("../two")
    (tmp_path / "two" / "other").symlink_to("../one")
    assert _names(tmp_path / "one" / "**" / "*.txt") == ["a.txt", "other/b.txt"]
    assert _names(tmp_path / "**" / "*.txt") == ["one/a.txt", "two/b.txt"]


def test_many_links_do_not_multiply(tmp_path: Path) -> None:
    """A folder with ten links to itself has more paths of ten steps than can be walked."""
    _write(tmp_path, "a.txt")
    for number in range(10):
        (tmp_path / f"link{number}").symlink_to(".")
    assert _names(tmp_path / "**" / "*.txt") == ["a.txt"]


def test_a_linked_file_is_taken_once_under_the_same_name(tmp_path: Path) -> None:
    _write(tmp_path, "z/real.txt", "outside/far.txt")
    (tmp_path / "a.txt").symlink_to("z/real.txt")
    (tmp_path / "z" / "far2.txt").symlink_to("../outside/far.txt")
    (tmp_path / "z" / "far1.txt").symlink_to("../outside/far.txt")
    (tmp_path / "broken.txt").symlink_to("nowhere.txt")
    assert _names(tmp_path / "**" / "*.txt") == ["outside/far.txt", "z/real.txt"]
    assert _names(tmp_path / "*.txt") == ["a.txt"]
    assert _names(tmp_path / "z" / "*.txt") == ["far1.txt", "real.txt"]


def test_relative_patterns_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "texts/a.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for pattern in ("texts/*.txt", "~/texts/*.txt", "./texts/a.txt", "../*/texts/a.txt"):
        (only,) = files_matching(pattern)
        assert Path(only[2]) == tmp_path.resolve() / "texts" / "a.txt"
    assert files_matching("") == []
