"""``--config lm/demo.yaml``: a file of the user's, else one of those that come with saccade."""

from collections.abc import Sequence
from pathlib import Path

import saccade.configs
from saccade.cli.errors import UsageError
from saccade.cli.suggestions import hint


def packaged_configs() -> dict[str, Path]:
    """The settings that come with saccade: names such as ``lm/demo.yaml``, and where each of them lies."""
    root = Path(str(saccade.configs.__file__)).parent
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.yaml"))}


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
        from saccade.cli.config_check import check_config  # help needs no YAML

        check_config(Path(name))
        return name
    if Path(name).is_dir():
        raise UsageError(f"--config {name}: this is a folder; name a YAML file in it")
    packaged = packaged_configs()
    if name in packaged:
        return str(packaged[name])
    raise UsageError(
        f"--config {name}: no such file, and none of the packaged ones ({', '.join(packaged)}){hint(name, packaged)}"
    )


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
