"""Check a configuration file before the parser reads it, to report errors with the name of the file and the line."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from saccade.cli.errors import UsageError


class _OnceLoader(yaml.SafeLoader):
    """Refuses a repeated key, of which YAML would silently ignore the first value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: {name!r} is there twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def check_config(path: Path) -> None:
    """Refuse a file that does not contain a mapping of settings; the parser's own messages do not name the file.

    Args:
        path: The file.

    Raises:
        UsageError: The file is not text, not YAML, empty, or repeats a key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)  # noqa: S506 -- a safe loader
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path} cannot be read ({reason}): fix the file.") from error
    if not isinstance(content, dict):
        found = "an empty file" if content is None else f"a {type(content).__name__}"
        raise UsageError(f"--config {path} must contain settings by name, got {found}: see lm/tiny.yaml.")
    if "trainer" in content and content["trainer"] is None:
        raise UsageError(f"--config {path} must give trainer settings, got none: add some, or leave trainer out.")
