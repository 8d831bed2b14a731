"""A file of settings is read once before the parser reads it: then a mistake in it has the file's name and line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from saccade.cli.errors import UsageError


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first one would be lost without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {name!r} stands there twice; join the two")
            seen.add(name)
        return super().construct_mapping(node, deep)


def check_config(path: Path) -> None:
    """Refuse a file that is no mapping of settings, by its name: the parser's own messages do not say which file it is.

    Args:
        path: Of the file.

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
    if "trainer" in content and content["trainer"] is None:
        raise UsageError(f"--config {path}: trainer has no settings; give it some, or leave it out")
