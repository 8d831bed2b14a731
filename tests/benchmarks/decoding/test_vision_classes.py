"""The table of vision-language classes: its rows are there for all of them, and a part of them is compared again."""

from __future__ import annotations

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.decoding import vision_classes
from benchmarks.rows import read
from saccade.inference import SpecVLM
from saccade.inference.model_check import TESTED
from tests.support.errors import one_line
from tests.support.video_models import ALL_FAMILIES

ROWS = {row["case"]: row for row in read("vision_classes")}
SAMPLE = [
    "qwen3_vl_moe",  # DeepStack, a mixture, M-RoPE
    "idefics3",  # another name of the language part, a mask of pixels
    "gemma3", "video_llava",  # refused: a mask that is not causal, pixels of another name
]  # fmt: skip
"""The classes that are compared at every run of the tests; the four families of videos have tests of their own."""


def test_there_is_a_row_for_every_class() -> None:
    assert sorted(ROWS) == sorted(vision_classes.TYPES)
    assert set(ALL_FAMILIES) <= set(ROWS)
    for name, row in ROWS.items():
        assert set(row["outcomes"]) == set(vision_classes.decoders("", None))
        for value in row["outcomes"].values():
            assert value == "equal" or ("\n" not in value and len(value) > 40), name
    unchecked = {name for name in TESTED if name.endswith("ForConditionalGeneration")}
    assert unchecked == {ROWS[name]["class"] for name in ALL_FAMILIES}


def test_a_dense_draft_of_a_mixture() -> None:
    """They read images alike; a draft of another family does not."""
    model, draft = vision_classes.tiny_model("qwen3_vl_moe"), vision_classes.tiny_model("qwen3_vl")
    batch = vision_classes.prompts("qwen3_vl_moe", model)
    right = vision_classes.reference(model, batch)
    found = SpecVLM(draft, prune_ratio=0.5).generate(model, **batch, max_new_tokens=vision_classes.NEW)  # type: ignore[arg-type]
    assert found.tokens == right
    other = vision_classes.tiny_model("qwen2_5_vl")
    one_line(lambda: SpecVLM(other).generate(model, **batch), "qwen2_5_vl", "qwen3_vl_moe", "family")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SAMPLE)
def test_the_table_is_true(name: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not have it")
    assert vision_classes.outcomes(name) == ROWS[name]["outcomes"]
