"""``saccade fit | validate | test | predict``: LightningCLI with run folders and errors in one line."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# imported so that their classes can be named without their module, as in `--model LanguageModel`
import saccade.callbacks
import saccade.datamodules
import saccade.inference
import saccade.modules
from saccade.callbacks.checkpoints.atomic_io import AtomicCheckpointIO
from saccade.callbacks.checkpoints.run_checkpoints import LastCheckpoint
from saccade.callbacks.export import unusable_loss
from saccade.cli.checkpoint_settings import check_checkpoint, differences, read_settings
from saccade.cli.config_lookup import resolve_config_arguments
from saccade.cli.errors import WRONG_WEIGHTS, UsageError, one_line, raised_by_us
from saccade.cli.loggers import check_loggers, make_parser, place_loggers
from saccade.cli.model_path import follow_model_path, model_path
from saccade.cli.quiet import quieten, quieten_for
from saccade.cli.run_callbacks import run_callbacks
from saccade.cli.run_folders import (
    check_name,
    create_run_folder,
    discard_if_without_results,
    find_checkpoint,
    point_latest_at,
)
from saccade.common.files import write_json, write_text
from saccade.common.provenance import provenance
from saccade.modules.exact_resume import ExactResume

# ranks that Lightning starts run the same command again; these variables pass on what the first rank decided
_RUN_FOLDER = "SACCADE_RUN_FOLDER"
_CHECKPOINT = "SACCADE_CKPT_PATH"

_TERMINATED = 143  # exit status of a process that SIGTERM ended

# arguments of single subcommands; without them a saved configuration can be used with the others too
_OF_ONE_CALL = ("ckpt_path", "verbose", "weights_only", "return_predictions", "config")

# candidates for the suggestion after a misspelt option; settings after a dot have their own suggestions
_OPTIONS = (
    "config", "print_config", "ckpt_path", "seed_everything", "name", "runs_folder", "save_every", "model", "data",
    "trainer",
)  # fmt: skip

# errors that constructors raise for wrong arguments
_REFUSALS = (
    ArgumentError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MisconfigurationException,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

_EPILOG = """\
A later --config replaces the lists of an earlier one. To add to trainer.callbacks instead of replacing it, write
`--trainer.callbacks+=ClassName` (followed by its settings, as `--trainer.callbacks.setting=value`), or `callbacks+:` in
the YAML file, as decoding/demo.yaml does. Checkpoints, progress bar and export are always on and need no entry.
"""


class SaccadeCLI(LightningCLI):
    """The training commands. Every run has its own folder, and the command's settings override the checkpoint's.

    Args:
        args: Command line without the program's name.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self._asked = args[0]
        self.run_folder: Path | None = None
        self.checkpoint: Path | None = None
        self._prints_metrics = False
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=resolve_config_arguments(args),
        )

    # the parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand that is asked for; parsers of the others would take longer than the rest of parsing."""
        return {self._asked: super().subcommands()[self._asked]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that raises its errors instead of printing its help."""
        return make_parser(exit_on_error=False, epilog=_EPILOG, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the two options for the run folder."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run; its folder is <runs_folder>/<name>/<time>. The default is the name of the first "
            "--config file, or of the model's class.",
        )
        parser.add_argument("--runs_folder", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--save_every",
            type=int | str | None,
            default="30m",
            help="In fit: how often checkpoints/last.ckpt is saved within an epoch: a number of optimizer steps, or a "
            "time such as 30m or 2h. It is also saved after every validation and epoch, and whenever a fit ends.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; raise errors in one line."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError, OSError) as error:
            raise UsageError(one_line(error, _OPTIONS)) from error
        check_loggers(self._settings().trainer.get("logger"))
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            value = self._settings().trainer.get(name)
            if isinstance(value, (int, float)) and value <= 0:  # Lightning divides by it later
                raise UsageError(
                    f"--trainer.{name} must be above 0, got {value}: give a positive number, for example 1."
                )
        seed = self._settings().get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UsageError(f"--seed_everything must be between 0 and {2**32 - 1}, got {seed}: choose another seed.")
        for line in follow_model_path(self._settings()):
            _say(line)

    # before anything is built

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint of ``--ckpt_path``, and print settings that differ from those of the command.

        This replaces Lightning's method, which silently overrides the command's settings with the checkpoint's.
        """
        settings = self._settings()
        settings.name = check_name(settings.name or self._default_name(settings))
        which = settings.get("ckpt_path")
        if which is None or which == "hpc":
            return
        if not is_first_rank() and _CHECKPOINT in os.environ:
            self.checkpoint = Path(os.environ[_CHECKPOINT])
        elif which in ("last", "best"):
            self.checkpoint = find_checkpoint(settings.runs_folder, settings.name, which)
            _say(f"--ckpt_path {which} is {self.checkpoint}")
        else:
            self.checkpoint = Path(which)
        check_checkpoint(self.checkpoint, settings.trainer.strategy)
        os.environ[_CHECKPOINT] = str(self.checkpoint)
        settings.ckpt_path = str(self.checkpoint)
        self._show_differences(settings)

    def _show_differences(self, settings: Namespace) -> None:
        if self.checkpoint is None:
            return
        saved = read_settings(self.checkpoint)
        if saved is None:
            _say(f"cannot read the settings in {self.checkpoint}; those of the command are used")
            return
        lines = differences(saved, settings.model.as_dict()) if saved else []
        if lines:
            _say(f"settings differ from those in {self.checkpoint} (checkpoint -> used):")
            for line in lines:
                _say(f"  {line}")

    def _default_name(self, settings: Namespace) -> str:
        files = settings.get("config") or self.config.get("config")
        if files:
            stem = Path(str(files[0])).stem
            return "".join(sign if sign.isalnum() or sign in "_.-" else "-" for sign in stem).lstrip(".-") or "run"
        return str(settings.model.class_path).rsplit(".", 1)[-1]

    def _settings(self) -> Namespace:
        """The parsed settings of the subcommand."""
        settings: Namespace = self.config[self.config.subcommand]
        return settings

    # building and running

    def before_instantiate_classes(self) -> None:
        """Create the run folder, and write the configuration and the provenance into it."""
        settings = self._settings()
        if settings.trainer.default_root_dir is not None:
            raise UsageError(
                f"--trainer.default_root_dir must not be set, got {settings.trainer.default_root_dir}: use"
                " --runs_folder and --name, because every run creates its own folder."
            )
        if not is_first_rank():
            # not set if the ranks were not started by Lightning; then RunFolder asks the first rank later
            self.run_folder = Path(os.environ.get(_RUN_FOLDER, settings.runs_folder))
            place_loggers(settings.trainer.get("logger"), self.run_folder)
            return
        self.run_folder = create_run_folder(settings.runs_folder, settings.name)
        os.environ[_RUN_FOLDER] = str(self.run_folder.absolute())
        try:
            self._write_records(settings, self.run_folder)
        except ValueError as error:
            self._fail(error)
        # behind the records: the same settings in another run have the folder of that run
        place_loggers(settings.trainer.get("logger"), self.run_folder)
        if self.checkpoint is None and self.subcommand != "fit" and model_path(settings) is None:
            _say("no --ckpt_path is given: the model has the weights that its settings give it")

    def _write_records(self, settings: Namespace, folder: Path) -> None:
        kept = settings.clone()
        for name in _OF_ONE_CALL:
            kept.pop(name, None)
        # links between settings are applied again when the file is read
        write_text(folder / "config.yaml", self._parser(self.subcommand).dump(kept, skip_unset=False))
        seed = settings.get("seed_everything")
        record = provenance(seed=seed if isinstance(seed, int) and not isinstance(seed, bool) else None)
        record.update(
            subcommand=self.subcommand,
            name=settings.name,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
        )
        write_json(folder / "provenance.json", record)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; raise errors of their constructors in one line."""
        try:
            super().instantiate_classes()
            quieten_for(self.model)
            ours = type(self.datamodule).__module__.startswith("saccade.datamodules")
            if ours and self.trainer.overfit_batches:  # type: ignore[attr-defined]
                raise ValueError(
                    f"--trainer.overfit_batches must be 0 with {type(self.datamodule).__name__}, got"
                    f" {self.trainer.overfit_batches}: use less data, for example with --trainer.limit_train_batches,"  # type: ignore[attr-defined]
                    " because Lightning cannot rebuild loaders that make their own batches."
                )
        except _REFUSALS as error:
            self._fail(error)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the run folder as its root."""
        folder = str(self.run_folder)
        logger = self._get(self.config_init, "trainer").get("logger")
        if logger is None or logger is True:
            # no name and no version: its folder is <run>/logs
            kwargs["logger"] = CSVLogger(folder, name="", version="logs")
        return super().instantiate_trainer(default_root_dir=folder, **kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        every = self._settings().save_every
        own = run_callbacks(Path(str(self.run_folder)), str(self.subcommand), config, given, self.model, every)
        # RunFolder is first because the others use the folder; layer searches are last, so that the model is already
        # exported if one of them fails.
        late = [callback for callback in given if isinstance(callback, saccade.callbacks.LayerSkipSearch)]
        given = [callback for callback in given if callback not in late]
        trainer = super()._instantiate_trainer({**config, "callbacks": [own[0], *given, *own[1:], *late]}, callbacks)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # neither the user's nor the strategy's own
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Switch off Lightning's table of all logged numbers: DecodingEvaluation has its own table."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        self._prints_metrics = bool(kwargs.get("verbose", False))
        if "verbose" in kwargs:
            kwargs["verbose"] = False
        return kwargs

    def _print_metrics(self) -> None:
        found = {name: value for name, value in self.trainer.callback_metrics.items() if "/" not in name}
        if found:
            _say(", ".join(f"{name} {float(value):.6g}" for name, value in found.items()))

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
            if self._prints_metrics:
                self._print_metrics()
        except SystemExit as stop:
            # Lightning converts Ctrl-C to SystemExit
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(str(self.run_folder)) from stop
            if isinstance(stop, SIGTERMException):
                _say(f"terminated; partial results are in {self.run_folder}")
                raise SystemExit(_TERMINATED) from stop
            raise
        except Exception as error:
            weights = isinstance(error, RuntimeError) and str(error).startswith(WRONG_WEIGHTS)
            ours = isinstance(error, (RuntimeError, TypeError, ValueError)) and raised_by_us(error)
            expected = weights or ours or isinstance(error, (MisconfigurationException, OSError))
            if not expected:
                traceback.print_exc()
            self._fail(error, status=2 if expected else 1)
        if subcommand == "fit":
            self._finish_fit()
        _say(f"results are in {self.run_folder}")

    def _finish_fit(self) -> None:
        """Let `latest` name this run if it trained a step, and say so if it trained none."""
        if (loss := unusable_loss(self.trainer)) is not None:
            raise UsageError(
                f"the training ended with a train_loss of {loss}: lower the learning rate, or set"
                f" trainer.gradient_clip_val. Partial results are in {self.run_folder}; the link `latest` is unchanged."
            )
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.trainer.global_step > ExactResume.of(self.trainer).first_step:
            if is_first_rank() and self.run_folder is not None:
                point_latest_at(self.run_folder)
        elif self.checkpoint is not None:
            _say(f"no step was trained: {self._used_up()}")

    def _last_checkpoint(self) -> LastCheckpoint | None:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, LastCheckpoint)), None)

    def _used_up(self) -> str:
        """Say which limit of the trainer the checkpoint has reached."""
        trainer = self.trainer
        for timer in (callback for callback in trainer.callbacks if isinstance(callback, Timer)):  # type: ignore[attr-defined]
            if (left := timer.time_remaining()) is not None and left <= 0:
                return "the run that is continued has used up max_time; raise --trainer.max_time, which counts both."
        name = "max_steps" if 0 <= trainer.max_steps <= trainer.global_step else "max_epochs"
        return f"the checkpoint has reached --trainer.{name}={getattr(trainer, name)}; raise it to train more."

    def _fail(self, error: Exception, status: int = 2) -> NoReturn:
        """End the run with an error in one line, and remove the run folder if it has no results."""
        self._discard()
        text = one_line(error) if status == 2 else f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(text + self._saved_note(), status) from error

    def _saved_note(self) -> str:
        """Say how to continue a fit that an error ended."""
        last = self._last_checkpoint() if hasattr(self, "trainer") else None
        if last is None or last.saved_step is None:
            return ""
        return f" Step {last.saved_step} is saved in {last.path}: continue with --ckpt_path last."

    def _discard(self) -> None:
        if self.run_folder is not None and is_first_rank():
            discard_if_without_results(self.run_folder)


def is_first_rank() -> bool:
    """Return whether this process has rank 0; known from the environment, before a process group exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _say(text: str) -> None:
    """Print a message to stderr, on the first rank only."""
    if is_first_rank():
        print(f"saccade: {text}", file=sys.stderr, flush=True)


def _end(*_: Any) -> None:
    """Handle SIGTERM."""
    _say("terminated")
    sys.exit(_TERMINATED)


def run(arguments: Sequence[str]) -> SaccadeCLI:
    """Run a training command.

    Args:
        arguments: The subcommand and its arguments.

    Returns:
        The command, which knows its run folder.

    Raises:
        UsageError: A setting is wrong, or saccade or Lightning refused the run.
    """
    quieten()
    if arguments[0] == "fit" or threading.current_thread() is not threading.main_thread():
        return SaccadeCLI(arguments)
    # Lightning handles SIGTERM during training only; other commands would continue
    before = signal.signal(signal.SIGTERM, _end)
    try:
        return SaccadeCLI(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
