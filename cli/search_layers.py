"""``saccade search-layers``: find the sub-layers that a model's own draft skips."""

from collections.abc import Sequence
from inspect import signature

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from saccade.callbacks import search_layers_of
from saccade.cli.config_lookup import resolve_config_arguments
from saccade.cli.errors import UsageError, one_line, raised_by_us


def run(arguments: Sequence[str]) -> None:
    """Run the search with the settings of the command line.

    Args:
        arguments: What follows the subcommand.

    Raises:
        UsageError: If the user can mend what is wrong.
    """
    parser = ArgumentParser(
        prog="saccade search-layers",
        exit_on_error=False,
        description=(search_layers_of.__doc__ or "").split("Args:")[0],
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the settings below.")
    parser.add_function_arguments(search_layers_of)
    try:
        settings = parser.parse_args(resolve_config_arguments(arguments))
    except (ArgumentError, OSError, TypeError, ValueError) as error:
        raise UsageError(one_line(error, ("config", *signature(search_layers_of).parameters))) from error
    chosen = settings.as_dict()
    chosen.pop("config", None)
    try:
        result = search_layers_of(**chosen)
    except ValueError as error:
        if raised_by_us(error):
            raise UsageError(one_line(error)) from error
        raise
    print(f"skipped in the draft: attention of layers {list(result.skip.attention)}, MLP of {list(result.skip.mlp)}")
    print(
        f"{result.speedup:.2f} times as fast as decoding one token at a time "
        f"({result.seconds_per_token * 1000:.2f} instead of {result.baseline_seconds_per_token * 1000:.2f} ms a token)"
    )
    print(f"written to {settings.output}; use it with SelfSpeculative(skip='{settings.output}')")
