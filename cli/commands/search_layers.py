"""``saccade search-layers``: the arguments and the output of the layer search."""

from collections.abc import Sequence
from inspect import signature

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from saccade.callbacks.layer_skip.saved_model import search_layers_of
from saccade.cli.config_lookup import resolve_config_arguments
from saccade.cli.errors import UsageError, one_line, raised_by_us
from saccade.cli.quiet import quieten


def run(arguments: Sequence[str]) -> None:
    """Run the layer search with the settings of the command line.

    Args:
        arguments: Arguments after the subcommand.

    Raises:
        UsageError: An argument is wrong, or the model or the text cannot be used.
    """
    quieten()
    parser = ArgumentParser(
        prog="saccade search-layers",
        exit_on_error=False,
        allow_abbrev=False,
        description=(search_layers_of.__doc__ or "").split("Args:")[0],
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with any of the settings below.")
    parser.add_function_arguments(search_layers_of, skip={"prompts"})
    parser.add_argument("--prompts", nargs="+", metavar="FILE", type=str, help=_help_of_prompts())
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
    print(f"the draft skips the attention of layers {list(result.skip.attention)}, the MLP of {list(result.skip.mlp)}")
    print(result.verdict)
    print(
        f"{result.seconds_per_token * 1000:.2f} ms for a token after the first, and"
        f" {result.baseline_seconds_per_token * 1000:.2f} ms in autoregressive decoding"
    )
    print(f"written to {settings.output}: use it with SelfSpeculative(skip='{settings.output}')")


def _help_of_prompts() -> str:
    """The text of `prompts` in the docstring of `search_layers_of`."""
    text = " ".join((search_layers_of.__doc__ or "").split())
    return text.split(" prompts: ")[1].split(" text: ")[0]
