"""``--config lm/demo.yaml``: a file of the user's, else one of those that come with saccade."""

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

import saccade.configs
from saccade.cli.errors import UsageError


def packaged_configs() -> dict[str, Path]:
    """The settings that come with saccade: names such as ``lm/demo.yaml``, and where each of them lies."""
    root = Path(str(saccade.configs.__file__)).parent
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.yaml"))}


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first one would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} stands there twice; join the two")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_config(path: Path) -> None:
    """Refuse a file that is no mapping of settings, by its name: the parser's own messages do not say which file it is.

    Raises:
        UsageError: The file is not text, not YAML, empty, or has a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)  # noqa: S506 -- a safe loader
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise UsageError(f"--config {path}: must hold settings by name, as lm/tiny.yaml does, but is {found}")
    for name in ("trainer", "model", "data"):
        if name in content and content[name] is None:
            raise UsageError(f"--config {path}: {name} has no settings; give it some, or leave it out")


def find_config(name: str) -> str:
    """Find a file of settings.

    Args:
        name: A path, or the name of a packaged file; a file that exists wins over a packaged one.

    Returns:
        The path as given, or that of the packaged file.

    Raises:
        UsageError: If there is neither, or the file is no mapping of settings.
    """
    if Path(name).is_file():
        _check_config(Path(name))
        return name
    if Path(name).is_dir():
        raise UsageError(f"--config {name}: this is a folder; name a YAML file in it")
    packaged = packaged_configs()
    if name in packaged:
        return str(packaged[name])
    near = difflib.get_close_matches(name, packaged, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"--config {name}: no such file, and none of the packaged ones ({', '.join(packaged)}){hint}")


def resolve_config_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace the names of packaged files after ``--config`` or ``-c`` by their paths.

    Args:
        arguments: Command line without the program's name.

    Returns:
        The same command line, ready for the parser.

    Raises:
        UsageError: If a named file does not exist.
    """
    resolved: list[str] = []
    expects_file = False
    for argument in arguments:
        if expects_file:
            resolved.append(find_config(argument))
        elif argument.startswith("--config="):
            resolved.append("--config=" + find_config(argument.removeprefix("--config=")))
        else:
            resolved.append(argument)
        expects_file = not expects_file and argument in ("--config", "-c")
    return resolved
