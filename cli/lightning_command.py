"""``saccade fit | validate | test | predict``: LightningCLI, without its four traps."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

# imported so that their classes can be named without their module, as in `--model LanguageModel`
import saccade.callbacks
import saccade.datamodules
import saccade.inference
import saccade.modules
from saccade.callbacks.export import unusable_loss
from saccade.cli.checkpoint_settings import check_checkpoint, differences, read_settings
from saccade.cli.config_lookup import resolve_config_arguments
from saccade.cli.errors import WRONG_WEIGHTS, UsageError, one_line, raised_by_us
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

# ranks that Lightning starts run the same command again and learn from these what the first one decided
_RUN_FOLDER = "SACCADE_RUN_FOLDER"
_CHECKPOINT = "SACCADE_CKPT_PATH"

_TERMINATED = 143  # as a shell says it of a process that SIGTERM ended

# arguments of one subcommand's method; without them a saved config serves the other subcommands too
_OF_ONE_CALL = ("ckpt_path", "verbose", "weights_only", "return_predictions", "config")

# what a misspelt option is compared with; what stands behind a dot is a setting and has its own suggestion
_OPTIONS = ("config", "print_config", "ckpt_path", "seed_everything", "name", "runs_folder", "model", "data", "trainer")

# what constructors raise over their arguments
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
A second --config replaces a list of the first one. To add to trainer.callbacks instead of replacing it, write
`--trainer.callbacks+=ClassName` (its settings after it, as `--trainer.callbacks.setting=value`), or `callbacks+:` in
the YAML, as decoding/demo.yaml does. Checkpoints, progress bar and export are always there and need no entry.
"""


class SaccadeCLI(LightningCLI):
    """The training commands: every run has its own folder, the command wins over the checkpoint, errors are one line.

    Args:
        args: Command line without the program's name.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.run_folder: Path | None = None
        self.checkpoint: Path | None = None
        self._tells_metrics = False
        super().__init__(
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=resolve_config_arguments(args),
        )

    # the parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that raises its errors instead of printing pages."""
        return super().init_parser(exit_on_error=False, epilog=_EPILOG, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the two options that say where a run lies."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Name of the run, whose folder is <runs_folder>/<name>/<time>. Default: that of the first --config "
            "file, else of the model's class.",
        )
        parser.add_argument("--runs_folder", type=str, default="runs", help="Folder in which all runs lie.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error is one line."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError, OSError) as error:
            raise UsageError(one_line(error, _OPTIONS)) from error
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            value = self._settings().trainer.get(name)
            if isinstance(value, (int, float)) and value <= 0:  # Lightning divides by it later
                raise UsageError(f"--trainer.{name}: must be above 0, but is {value}")
        seed = self._settings().get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UsageError(f"--seed_everything: must lie between 0 and {2**32 - 1}, but is {seed}")

    # before anything is built

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint that is meant, and show where its settings differ from those that are used.

        Lightning lets the checkpoint's settings win here, without a word; that is why this is replaced.
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
            _say(f"the settings in {self.checkpoint} cannot be read; those of the command are used")
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
        """Make the run folder, with its records in it."""
        settings = self._settings()
        if settings.trainer.default_root_dir is not None:
            raise UsageError("--trainer.default_root_dir: every run makes its own folder; use --runs_folder and --name")
        if not is_first_rank():
            # started by something else than Lightning there is no answer yet; RunFolder asks the first rank later
            self.run_folder = Path(os.environ.get(_RUN_FOLDER, settings.runs_folder))
            return
        self.run_folder = create_run_folder(settings.runs_folder, settings.name)
        os.environ[_RUN_FOLDER] = str(self.run_folder.absolute())
        try:
            self._write_records(settings, self.run_folder)
        except ValueError as error:
            self._fail(error)
        if self.checkpoint is None and self.subcommand != "fit":
            _say("no --ckpt_path is given: the model is used as its settings build it")

    def _write_records(self, settings: Namespace, folder: Path) -> None:
        kept = settings.clone()
        for name in _OF_ONE_CALL:
            kept.pop(name, None)
        # links between settings are followed again when the file is read
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
        """Build model, data and trainer; what a constructor refuses is one line."""
        try:
            super().instantiate_classes()
            ours = type(self.datamodule).__module__.startswith("saccade.datamodules")
            if ours and self.trainer.overfit_batches:  # type: ignore[attr-defined]
                raise ValueError(
                    "--trainer.overfit_batches: Lightning would have to make the loaders of"
                    f" {type(self.datamodule).__name__} anew, and they make their own batches; give it little data"
                    " instead, as with --trainer.limit_train_batches or settings of the data"
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
        own = run_callbacks(Path(str(self.run_folder)), str(self.subcommand), config, given)
        # The run folder is agreed on before all else, and a search that fails behind a fit must not cost the export.
        late = [callback for callback in given if isinstance(callback, saccade.callbacks.LayerSkipSearch)]
        given = [callback for callback in given if callback not in late]
        return super()._instantiate_trainer({**config, "callbacks": [own[0], *given, *own[1:], *late]}, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Keep Lightning's table of every logged number away: DecodingEvaluation logs a hundred, and has its own."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        self._tells_metrics = bool(kwargs.get("verbose", False))
        if "verbose" in kwargs:
            kwargs["verbose"] = False
        return kwargs

    def _tell_metrics(self) -> None:
        found = {name: value for name, value in self.trainer.callback_metrics.items() if "/" not in name}
        if found:
            _say(", ".join(f"{name} {float(value):.6g}" for name, value in found.items()))

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
            if self._tells_metrics:
                self._tell_metrics()
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit of its own
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt(str(self.run_folder)) from stop
            if isinstance(stop, SIGTERMException):
                _say(f"terminated; what there is lies in {self.run_folder}")
                raise SystemExit(_TERMINATED) from stop
            raise
        except Exception as error:
            weights = isinstance(error, RuntimeError) and str(error).startswith(WRONG_WEIGHTS)
            ours = isinstance(error, (RuntimeError, TypeError, ValueError)) and raised_by_us(error)
            if weights or ours or isinstance(error, (MisconfigurationException, OSError)):
                self._fail(error)
            self._discard()
            raise
        if subcommand == "fit" and (loss := unusable_loss(self.trainer)) is not None:
            raise UsageError(
                f"the training ended with a train_loss of {loss}: lower the learning rate, or set"
                f" trainer.gradient_clip_val; what there is lies in {self.run_folder}, and `latest` is as it was"
            )
        # a trial run and one without a step leave nothing that `latest` could lead to
        learned = self.trainer.global_step > 0 and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if subcommand == "fit" and learned and is_first_rank() and self.run_folder is not None:
            point_latest_at(self.run_folder)
        _say(f"results are in {self.run_folder}")

    def _fail(self, error: Exception) -> None:
        """End the run with one line, and leave no folder behind that holds nothing."""
        self._discard()
        raise UsageError(one_line(error)) from error

    def _discard(self) -> None:
        if self.run_folder is not None and is_first_rank():
            discard_if_without_results(self.run_folder)


def is_first_rank() -> bool:
    """Whether this process is the one that writes; known from the environment, before any process group exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _say(text: str) -> None:
    """Tell the user something beside the results, once for all ranks."""
    if is_first_rank():
        print(f"saccade: {text}", file=sys.stderr, flush=True)


def _end(*_: Any) -> None:
    """What SIGTERM does."""
    _say("terminated")
    sys.exit(_TERMINATED)


def _is_news(record: logging.LogRecord) -> bool:
    """Let Lightning's messages pass, except adverts and what it says of itself at every checkpoint."""
    message = record.getMessage()
    return "Tip: For seamless cloud" not in message and "`weights_only` was not set" not in message


def run(arguments: Sequence[str]) -> None:
    """Run a training command.

    Args:
        arguments: The subcommand and what follows it.

    Raises:
        UsageError: If the user can mend what is wrong.
    """
    # one process reads tokens that lie ready; more would cost more than they bring
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Lightning 2.6 calls torch as it was; nothing that a user can mend
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # an averaged model is whole on every rank here, and a test reads averaged weights as they are
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback.*")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors.checkpoint_connector"):
        logging.getLogger(name).addFilter(_is_news)
    if arguments[0] == "fit" or threading.current_thread() is not threading.main_thread():
        SaccadeCLI(arguments)
        return
    # Lightning notes SIGTERM for training to look at, and lets everything else run on
    before = signal.signal(signal.SIGTERM, _end)
    try:
        SaccadeCLI(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
