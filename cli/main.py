"""The ``saccade`` command: run a subcommand and print errors in one line. Importing this module loads no torch."""

import gc
import importlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

_TRAINING = {
    "fit": "train a model",
    "validate": "validate a model; with the callback DecodingEvaluation, also evaluate decoders",
    "test": "test a model",
    "predict": "predict with a model",
}
# by name: description, and module with a function `run(arguments)`
_OTHERS = {
    "compare": (
        "compare decoders on a model, in one table, without a file of settings",
        "saccade.cli.commands.compare",
    ),
    "generate": (
        "write a language model's answers to prompts, which fit can train on",
        "saccade.cli.commands.generate",
    ),
    "export": ("write the model folder of a checkpoint", "saccade.cli.commands.export"),
    "search-layers": ("search the sub-layers that a model's own draft skips", "saccade.cli.commands.search_layers"),
    "doctor": ("print versions, devices, and packages that are missing for a feature", "saccade.cli.commands.doctor"),
}
_COMMANDS = {
    **{name: (text, "saccade.cli.lightning_command") for name, text in _TRAINING.items()},
    **_OTHERS,
}

_HELP = """\
usage: saccade [--help] [--version] COMMAND [options] [--debug]

Train models that are robust to missing or scarce data, and decode language and vision-language models fast.

commands:
{commands}

`saccade COMMAND --help` lists the options of a command.
  --config FILE   a YAML file of settings, or the name of one that is part of saccade:
{configs}
  --debug         print the traceback of an error

A later --config replaces the lists of an earlier one; `--trainer.callbacks+=ClassName` adds a callback, and so does
`callbacks+:` in a YAML file. Every run has its own folder: runs/<name>/<time>.
"""


def _help() -> str:
    from saccade.cli.config_lookup import packaged_configs

    return _HELP.format(
        commands="\n".join(f"  {name:<15} {text}" for name, (text, _) in _COMMANDS.items()),
        configs="\n".join(f"                  {name}" for name in packaged_configs()),
    )


def _loaded(command: str) -> ModuleType:
    """Import a command's module, which takes seconds, and say so first; on a terminal, until it is done."""
    name = _COMMANDS[command][1]
    if name in sys.modules:
        return sys.modules[name]
    says = _is_first_rank()
    passing = says and sys.stderr.isatty()
    if says:
        print(f"saccade: {command}: loading PyTorch ...", end="" if passing else "\n", file=sys.stderr, flush=True)
    gc.disable()  # nothing that is imported is garbage; looking for it takes a sixth of the time
    try:
        return importlib.import_module(name)
    finally:
        gc.enable()
        if passing:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # to the start of the line, and clear it


def _is_first_rank() -> bool:
    """Return whether this process has rank 0, from the variables that Lightning reads; torch is not loaded yet."""
    found = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
    return next((rank for rank in found if rank is not None), "0") == "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``saccade`` command.

    Args:
        argv: Command line without the program's name; None is that of the process.

    Returns:
        The exit status: 0, or 2 after an error in the settings, 1 after an unexpected one, 130 after Ctrl-C. SIGTERM
        exits with 143.
    """
    from saccade.cli.errors import UsageError
    from saccade.cli.suggestions import hint

    # Threads that spin while they wait compete for the cores of a shared machine. With two other jobs on two cores,
    # training the demo's model took 2.4 times longer without this; alone on the machine it takes a sixth longer with
    # it. It must be set before torch is imported; a value that is already set is kept.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    command = arguments[0] if arguments else "--help"
    if command in ("--help", "-h", "help"):
        print(_help(), end="")
        return 0
    if command == "--version":
        print(f"saccade {importlib.metadata.version('saccade')}")
        return 0
    try:
        if command not in _COMMANDS:
            advice = hint(command, _COMMANDS) or f": use one of {', '.join(_COMMANDS)}."
            raise UsageError(f"unknown command '{command}'{advice}")
        module = _loaded(command)
        module.run(arguments if command in _TRAINING else arguments[1:])
    except UsageError as error:
        if debug:
            traceback.print_exc()
        print(f"saccade: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt as stop:
        kept = f"; partial results are in {stop}" if str(stop) else ""
        print(f"saccade: interrupted{kept}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
