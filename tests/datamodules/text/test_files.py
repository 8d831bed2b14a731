"""Which files a corpus has, and which part each belongs to."""

from pathlib import Path

import pytest

from saccade.datamodules.text.files import CorpusFile, matching_files, part_of, select, standard_library_files


def _write(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")


def test_standard_library_is_real_sorted_and_without_tests() -> None:
    files = standard_library_files()
    names = [file.name for file in files]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    parts = {piece for name in names for piece in name.split("/")[:-1]}
    assert not parts & {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
    assert sum(file.path.stat().st_size for file in files) > 4_000_000


def test_names_do_not_depend_on_where_the_corpus_lies(tmp_path: Path) -> None:
    names = ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    for folder in ("here", "there"):
        _write(tmp_path / folder, [*names, "no.md"])
    here = matching_files([str(tmp_path / "here" / "**" / "*.txt")])
    there = matching_files([str(tmp_path / "there" / "**" / "*.txt")])
    assert [file.name for file in here] == [file.name for file in there] == names


def test_a_file_that_two_patterns_match_is_taken_once(tmp_path: Path) -> None:
    _write(tmp_path, ["a.txt", "b.txt"])
    files = matching_files([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])
    assert [file.name for file in files] == ["a.txt", "b.txt"]


def test_a_pattern_without_files_is_named(tmp_path: Path) -> None:
    _write(tmp_path, ["a.txt"])
    with pytest.raises(ValueError, match=r"paths must match files, got '.*\.rst'"):
        matching_files([str(tmp_path / "*.txt"), str(tmp_path / "*.rst")])
    with pytest.raises(ValueError, match="to the folder"):
        matching_files([str(tmp_path)])


def test_split_looks_at_the_name_and_the_seed_only() -> None:
    names = [f"folder/file{i}.py" for i in range(2000)]
    parts = {name: part_of(name, 0.2, 0.1, seed=3) for name in names}
    assert parts == {name: part_of(name, 0.2, 0.1, seed=3) for name in reversed(names)}
    shares = {part: list(parts.values()).count(part) / len(names) for part in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.03)
    assert parts != {name: part_of(name, 0.2, 0.1, seed=4) for name in names}


def test_a_larger_validation_part_keeps_the_test_part() -> None:
    names = [f"{i}.py" for i in range(500)]
    small = {name for name in names if part_of(name, 0.1, 0.2, 0) == "test"}
    large = {name for name in names if part_of(name, 0.5, 0.2, 0) == "test"}
    assert small == large


def test_selection_is_deterministic_and_limited(tmp_path: Path) -> None:
    _write(tmp_path, [f"{i:02d}.txt" for i in range(20)])
    (tmp_path / "empty.txt").touch()
    files = matching_files([str(tmp_path / "*.txt")])
    chosen = select(files, 5, None, seed=0)
    assert len(chosen) == 5
    assert chosen == select(list(reversed(files)), 5, None, seed=0)
    assert chosen != select(files, 5, None, seed=1)
    by_size = select(files, None, 45, seed=0)
    assert 30 < sum(file.path.stat().st_size for file in by_size) <= 45
    assert "empty.txt" not in [file.name for file in select(files, None, None, seed=0)]


def test_selection_of_nothing_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, ["a.txt"])
    with pytest.raises(ValueError, match="max_bytes must leave at least one file"):
        select([CorpusFile("a.txt", tmp_path / "a.txt")], None, 3, seed=0)
