"""What a normal run writes to stderr: the command's own lines; what somebody can act on is still shown."""

import logging
import re
import subprocess
import sys
import warnings

import pytest

from saccade.cli.quiet import quieten, quieten_for
from saccade.modules import Retriever
from tests.cli.toy import ToyModel
from tests.support.processes import TIME_LIMIT, environment

OWN = re.compile(r"saccade: |TraitSelection: ")
SETTINGS = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
LM = [
    "--config", "lm/tiny.yaml", "--trainer.max_steps=2", "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1", "--trainer.limit_predict_batches=1", "--data.num_workers=1",
]  # fmt: skip
VIDEO = [
    "--config", "video/llava-tiny.yaml", "--data.scenes=4", "--data.validation_scenes=1", "--data.test_scenes=1",
    "--model.slot_scenes=0", "--model.max_answer_tokens=2", "--trainer.max_steps=1", "--trainer.val_check_interval=1",
    "--data.num_workers=1",
]  # fmt: skip
CLIPS = [
    "--config", "t2dr/demo.yaml", "--config", "t2dr/late_fusion.yaml", "--data.generator=SyntheticSentiment",
    "--data.generator.clips=[16,8,8]", "--data.batch_size=8", "--model.width=8", "--trainer.max_epochs=1",
    "--trainer.callbacks.mask_seeds=1",
]  # fmt: skip
TRAIT = [
    "--config", "trait/demo.yaml", "--data.sources=[asyncio,email]", "--data.target=logging", "--data.chunk_size=8",
    "--data.passes=1", "--data.max_pairs_per_package=32", "--model.width=8",
]  # fmt: skip
ADAPTED = [*LM, "--model.lora.rank=2", "--model.lora.target_modules=[lm_head,q_proj]", "--name", "lm"]
COMMANDS = [
    ["fit", *ADAPTED],
    [
        "fit",
        *ADAPTED,
        "--ckpt_path",
        "last",
        "--trainer.max_steps=4",
        "--trainer.logger",
        "CSVLogger",
        "--trainer.callbacks+=ModelCheckpoint",
    ],
    *([command, *ADAPTED, "--ckpt_path", "last"] for command in ("validate", "test", "predict")),
    ["export", "last", "--name", "lm"],
    ["compare", "runs/lm/latest/model", "--max_prompts", "1", "--max_new_tokens", "2", "--device", "cpu"],
    ["fit", *VIDEO, "--name", "video"],
    ["predict", *VIDEO, "--name", "video", "--ckpt_path", "last"],
    ["fit", *CLIPS, "--name", "clips"],
    ["test", *CLIPS, "--name", "clips", "--ckpt_path", "best"],
    ["fit", *TRAIT, "--trainer.callbacks.budget=1"],
    ["fit", *TRAIT, "--trainer.callbacks=[]", "--trainer.max_epochs=1", "--model", "Retriever", "--model.rows=512"],
]


def test_normal_runs_write_the_commands_own_lines_only(tmp_path):
    """One process, in which pytest does not record warnings, runs every module."""
    code = (
        "import sys\n"
        "from saccade.cli.main import main\n"
        f"for arguments in {COMMANDS!r}:\n"
        f"    settings = {SETTINGS!r} if arguments[0] not in ('export', 'compare') else []\n"
        "    assert main([*arguments, *settings]) == 0, arguments\n"
        "import warnings\n"
        "warnings.warn('saccade: drafts do not pay')\n"
        "warnings.warn('of a library')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment() | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    # on a machine with a GPU, Lightning says that it is not used, which somebody can act on
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line and "GPU available" not in line]
    # a user reads the sentence of our own warnings, and not the place in the package at which it is written
    end = lines.index("saccade: drafts do not pay")
    assert any("UserWarning: of a library" in line for line in lines[end:])
    del lines[end:]
    assert [line for line in lines if not OWN.match(line)] == []
    assert len([line for line in lines if line.startswith("saccade: fit stopped: ")]) >= 4


@pytest.fixture
def quiet():
    """Filters that the test adds are removed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quieten()
        yield caught


def test_a_module_of_ones_own_keeps_the_warnings_about_it(quiet):
    quieten_for(ToyModel())
    for text in (
        "You have overridden `on_before_batch_transfer` in `LightningModule` but",
        "You passed in a `val_dataloader` but have no `validation_step`. Skipping val loop.",
        "Checkpoint directory x exists and is not empty.",
    ):
        warnings.warn(text, UserWarning, stacklevel=1)
        assert str(quiet[-1].message) == text
    quieten_for(Retriever(rows=512, width=8))
    shown = len(quiet)
    warnings.warn("You passed in a `val_dataloader` but have no `validation_step`. Skipping val loop.", stacklevel=1)
    assert len(quiet) == shown


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ("pooler.dense.weight | MISSING | ", False),
        ("pooler.dense.bias   | UNEXPECTED | ", False),
        ("cls.predictions.{bias, decoder.bias} | UNEXPECTED | ", False),
        ("lm_head.weight | \x1b[31mMISSING\x1b[0m | ", True),
        ("pooler.dense.weight | MISSING | \nencoder.layer.{0...11}.weight | MISSING | ", True),
        ("classifier.weight | MISSING | ", True),
    ],
)
def test_only_heads_that_nobody_uses_are_left_out_of_reports(quiet, rows, shown):
    report = f"\x1b[1mBertModel LOAD REPORT\x1b[0m from: bert\nKey | Status | \n----+----+-\n{rows}\n\nNotes:\n- x:\ty"
    logger = logging.getLogger("transformers.modeling_utils")
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 1, report, None, None)
    assert bool(logger.filter(record)) == shown


def test_the_end_of_a_fit_is_told_as_ours_and_other_messages_as_they_are(quiet):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for text, expected in (
        ("`Trainer.fit` stopped: `max_time` reached.", "saccade: fit stopped: `max_time` reached."),
        ("GPU available: True (cuda), used: True", "GPU available: True (cuda), used: True"),
        ("Seed set to 0", None),
    ):
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 1, text, None, None)
        assert (record.getMessage() if logger.filter(record) else None) == expected
