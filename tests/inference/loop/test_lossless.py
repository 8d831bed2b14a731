"""Every lossless decoder writes what greedy autoregressive decoding writes, which is what model.generate writes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from saccade.inference import Autoregressive, Sampling
from saccade.inference.verification.near_ties import NearTie, first_difference
from tests.support.decoders import DECODERS, LOSSLESS
from tests.support.models import prompts, tiny_model
from tests.support.stories import load_stories, spec_bench_prompts

NEW = 64
MODELS = [(name, tied, ties) for name, tied in (("llama", False), ("qwen2", True), ("qwen3", False)) for ties in (0, 1)]
# 34 prompts on each of 6 models
LENGTHS = [1 + (7 * row) % 33 for row in range(34)]
ROUNDED = (torch.float32, torch.bfloat16)


@cache
def random_model(architecture: str, tied: bool, near_ties: int, dtype: torch.dtype) -> PreTrainedModel:
    return tiny_model(architecture, tied=tied, near_ties=bool(near_ties), residual=0.3, dtype=dtype, seed=3)


@cache
def reference(architecture: str, tied: bool, near_ties: int, dtype: torch.dtype) -> list[list[int]]:
    model = random_model(architecture, tied, near_ties, dtype)
    return Autoregressive().generate(model, **prompts(model, LENGTHS), max_new_tokens=NEW).tokens


def story_batches() -> list[dict[str, torch.Tensor]]:
    batches = []
    texts = sorted(spec_bench_prompts(200, 512 - NEW), key=len)
    for start in range(0, len(texts), 50):  # of like lengths
        rows = texts[start : start + 50]
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


@cache
def story_reference(dtype: torch.dtype) -> list[list[list[int]]]:
    model = load_stories(dtype)
    return [
        Autoregressive().generate(model, **batch, max_new_tokens=NEW, eos_token_id=()).tokens
        for batch in story_batches()
    ]


def rows_that_left(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], ours: list[list[int]], theirs: list[list[int]]
) -> dict[int, NearTie]:
    """How close the two tokens are at the first difference of every row that differs from the reference."""
    left = {}
    for row, (mine, right) in enumerate(zip(ours, theirs, strict=True)):
        assert len(mine) == len(right)
        if mine != right:
            prompt = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            left[row] = first_difference(model, prompt, mine, right)
    return left


@pytest.mark.parametrize(("architecture", "tied", "near_ties"), MODELS)
def test_autoregressive_is_model_generate(architecture: str, tied: bool, near_ties: int) -> None:
    model = random_model(architecture, tied, near_ties, torch.float64)
    batch = prompts(model, LENGTHS)
    theirs = model.generate(
        **batch, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    best = torch.stack(theirs.logits).topk(2, dim=-1).values
    if near_ties:  # the planted gap is there, at every position
        assert (best[..., 0] - best[..., 1]).min() > 1e-10
        assert (best[..., 0] - best[..., 1]).max() < 3e-9
    new = theirs.sequences[:, batch["input_ids"].shape[1] :].tolist()
    assert new == reference(architecture, tied, near_ties, torch.float64)


@pytest.mark.parametrize("name", sorted(set(LOSSLESS) - {"autoregressive"}))
@pytest.mark.parametrize(("architecture", "tied", "near_ties"), MODELS)
def test_float64_has_no_mismatch(architecture: str, tied: bool, near_ties: int, name: str) -> None:
    model = random_model(architecture, tied, near_ties, torch.float64)
    out = DECODERS[name](model).generate(model, **prompts(model, LENGTHS), max_new_tokens=NEW)
    assert out.tokens == reference(architecture, tied, near_ties, torch.float64)
    assert out.stats.drafted > 0, "nothing was drafted: the test says nothing"


def test_stories_autoregressive_is_model_generate() -> None:
    model = load_stories()
    for batch, expected in list(zip(story_batches(), story_reference(torch.float64), strict=True))[:1]:
        theirs = model.generate(**batch, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert theirs[:, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("name", ["prompt_lookup", "assisted", "self_speculative"])
def test_stories_have_no_mismatch(name: str) -> None:
    model = load_stories()
    decoder = DECODERS[name](model)
    for batch, expected in zip(story_batches(), story_reference(torch.float64), strict=True):
        out = decoder.generate(model, **batch, max_new_tokens=NEW, eos_token_id=())
        assert out.tokens == expected
        assert out.stats.accepted > 0


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("name", ["assisted", "prompt_lookup", "self_speculative"])
def test_low_precision_leaves_only_at_near_ties(
    name: str, dtype: torch.dtype, record_property: pytest.RecordProperty
) -> None:
    left: list[NearTie] = []
    for architecture, tied, _ in MODELS[::2]:
        model = random_model(architecture, tied, 0, dtype)
        batch = prompts(model, LENGTHS)
        out = DECODERS[name](model).generate(model, **batch, max_new_tokens=NEW)
        left += rows_that_left(model, batch, out.tokens, reference(architecture, tied, 0, dtype)).values()
    record_property("rows_that_left", str(left))
    print(f"{name} {dtype}: {len(left)} of {3 * len(LENGTHS)} rows left the reference: {left}")
    assert all(tie.near for tie in left), left


@pytest.mark.parametrize("name", ["prompt_lookup", "self_speculative"])
def test_stories_in_float32_leave_only_at_near_ties(name: str, record_property: pytest.RecordProperty) -> None:
    model = load_stories(torch.float32)
    left: list[NearTie] = []
    for batch, expected in list(zip(story_batches(), story_reference(torch.float32), strict=True))[:1]:
        out = DECODERS[name](model).generate(model, **batch, max_new_tokens=NEW, eos_token_id=())
        left += rows_that_left(model, batch, out.tokens, expected).values()
    record_property("rows_that_left", str(left))
    print(f"{name} stories float32: {len(left)} of 50 rows left the reference: {left}")
    assert all(tie.near for tie in left), left


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=0.8, top_p=0.9, seed=5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_row_does_not_depend_on_its_neighbours_or_on_the_side_of_padding(
    name: str, sampling: Sampling | None
) -> None:
    model = tiny_model("qwen3", residual=0.3)
    lengths = [9, 3, 14, 1]
    texts = prompts(model, lengths, seed=4)
    rows = [ids[mask.bool()] for ids, mask in zip(texts["input_ids"], texts["attention_mask"], strict=True)]
    right = {key: torch.zeros_like(value) for key, value in texts.items()}
    for index, row in enumerate(rows):
        right["input_ids"][index, : len(row)] = row
        right["attention_mask"][index, : len(row)] = 1

    def decode(batch: dict[str, torch.Tensor]) -> list[list[int]]:
        return DECODERS[name](model).generate(model, **batch, max_new_tokens=24, sampling=sampling).tokens

    together = decode(texts)
    assert decode(right) == together
    # row 0 has the same random stream whoever is beside it
    assert decode({"input_ids": rows[0][None]}) == together[:1]
    shuffled = {key: value[[0, 3, 1]] for key, value in texts.items()}
    assert decode(shuffled)[0] == together[0]
    if sampling is None:
        assert decode(shuffled)[1:] == [together[3], together[1]]
