"""What libraries say in a normal run and nobody can do anything about, each by its own words; all else is shown."""

import logging
import re
import sys
import warnings

from lightning.pytorch import LightningModule
from transformers.utils import logging as transformers_logging

from saccade.modules.retrieval.ranker import Ranker

# warnings, as regular expressions
_WARNINGS = (
    # one process is enough to read prepared tokens; more would be slower
    ".*does not have many workers.*",
    # Lightning 2.6 uses a deprecated function of torch
    ".*isinstance.treespec, LeafSpec.*",
    # every rank has the whole averaged model, and testing uses the averaged weights as they are
    ".*WeightAveraging callback.*",
    # every run has a folder of its own
    "The dirpath has changed from",
    # on the login node of a cluster, where somebody tries a run before it is queued
    "The `srun` command is available on your system but is not used",
)
# messages of Lightning's loggers, by a part of them
_MESSAGES = (
    "Tip: For seamless cloud",  # adverts
    "`weights_only` was not set",
    "Seed set to",  # it is in config.yaml and provenance.json
    "GPU available: False",
    "TPU available: False",
    "was configured so",  # `Trainer(limit_val_batches=1)`
    "Loading `train_dataloader` to estimate",
    "Restoring states from the checkpoint path",  # said by the command itself
    "Loaded model weights from the checkpoint",
    "Restored all states from the checkpoint",
    "torch.set_float32_matmul_precision",  # a call in Python
)
_LOGGERS = (
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_STOPPED = "`Trainer.fit` stopped: "
# heads that an encoder has or lacks in its file, and that the modules do not use
_HEADS = re.compile(r"(\w+\.)?(pooler|cls|lm_head|vocab_(transform|layer_norm|projector))\b")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ROW = re.compile(r"^(\S.*?) +\| (MISSING|UNEXPECTED|MISMATCH|CONVERSION|OWNED|SKIPPED)\b", re.MULTILINE)


def _is_news(record: logging.LogRecord) -> bool:
    """Pass a message unless it is one of those above; the end of a fit is told as the command's own."""
    message = record.getMessage()
    if message.startswith(_STOPPED):
        record.msg, record.args = f"saccade: fit stopped: {message.removeprefix(_STOPPED)}", None
    return not any(part in message for part in _MESSAGES)


def _names_used_weights(record: logging.LogRecord) -> bool:
    """Pass transformers' report of a loaded model unless it names only heads that are not used."""
    text = _COLOUR.sub("", record.getMessage())
    if "LOAD REPORT" not in text:
        return True
    # a head that is missing is one that is used, but for the pooler, which the modules remove
    return not all(
        _HEADS.match(name) and ("pooler" in name or status == "UNEXPECTED") for name, status in _ROW.findall(text)
    )


_format = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings in one line, as all that the commands say; of others also the place in the code."""
    if str(message).startswith("saccade: "):
        return f"{message}\n"
    return _format(message, category, filename, lineno, line)


def quieten() -> None:
    """Leave out the messages for the rest of the process; calling this again has no effect."""
    warnings.formatwarning = _format_warning
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_news)
    logging.getLogger("transformers.modeling_utils").addFilter(_names_used_weights)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # its bars over the files of a model end in lines of a log


def quieten_for(model: LightningModule) -> None:
    """Leave out what Lightning says about a module that does on purpose what is often a mistake.

    Args:
        model: The module of the run.
    """
    if type(model).__module__.startswith("saccade.modules."):
        # the modules check every batch there, and leave it to Lightning to move it
        warnings.filterwarnings("ignore", message=".*You have overridden `on_before_batch_transfer`")
    if isinstance(model, Ranker):
        # rankers are measured by callbacks, which read the same loader
        warnings.filterwarnings("ignore", message=".*but have no `validation_step`. Skipping val loop")
