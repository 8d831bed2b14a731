"""Find the file of ``--config lm/demo.yaml``: the user's own file, or one that is part of saccade."""

import re
from collections.abc import Sequence
from pathlib import Path

import saccade.configs
from saccade.cli.errors import UsageError
from saccade.cli.suggestions import hint


def packaged_configs() -> dict[str, Path]:
    """Return the configuration files that are part of saccade: names such as ``lm/demo.yaml``, and their paths."""
    root = Path(str(saccade.configs.__file__)).parent
    return {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def find_config(name: str) -> str:
    """Find a configuration file.

    Args:
        name: A path, or the name of a packaged file; an existing file takes precedence.

    Returns:
        The path as given, or that of the packaged file.

    Raises:
        UsageError: There is no such file, or it does not contain a mapping of settings.
    """
    if Path(name).is_file():
        from saccade.cli.config_check import check_config  # not needed for --help

        check_config(Path(name))
        return name
    if Path(name).is_dir():
        raise UsageError(f"--config must be a YAML file, got the folder {name}: name a file in it.")
    packaged = packaged_configs()
    if name in packaged:
        return str(packaged[name])
    raise UsageError(
        f"--config must be a file or the name of a packaged one, got {name}"
        f"{hint(name, packaged) or ': use one of ' + ', '.join(packaged) + ', or check the path.'}"
    )


def resolve_config_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace the names of packaged files after ``--config`` or ``-c`` by their paths.

    Args:
        arguments: Command line without the program's name.

    Returns:
        The same command line with paths.

    Raises:
        UsageError: A file does not exist, or an option has one dash.
    """
    resolved: list[str] = []
    expects_file = False
    for argument in arguments:
        if not expects_file and re.match(r"-(config|name|model|data|trainer|ckpt_path)\b", argument):
            raise UsageError(f"{argument} must begin with two dashes, got one: write -{argument}.")
        if expects_file:
            resolved.append(find_config(argument))
        elif argument.startswith("--config="):
            resolved.append("--config=" + find_config(argument.removeprefix("--config=")))
        else:
            resolved.append(argument)
        expects_file = not expects_file and argument in ("--config", "-c")
    return resolved
