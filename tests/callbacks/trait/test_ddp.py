"""A selection on two processes: rank 0 decides, both follow, and it is the search of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.callbacks.trait.ddp_script import search
from tests.support.processes import run_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trait-ddp")
    run_ranks("tests.callbacks.trait.ddp_script", folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def test_both_ranks_know_the_same(folder: Path, ranks: dict) -> None:
    for run in ("whole", "stopped"):
        first, second = ranks[run]
        assert first["events"] == second["events"]
        assert first["score"] == second["score"]
        assert first["weights"] == second["weights"]
        assert first["events"] == journal(folder / run)[1:]


def test_rank_0_alone_writes_and_writes_once(folder: Path, ranks: dict) -> None:
    assert ranks["whole"][0]["written"] == ["trait.json", "trait.md"]
    assert ranks["whole"][1]["written"] == []
    assert (folder / "whole" / "trait.png").stat().st_size > 10_000


def test_a_stopped_search_goes_on_on_two_processes(folder: Path, ranks: dict) -> None:
    assert ranks["interrupted"]
    assert journal(folder / "stopped") == journal(folder / "whole")
    assert ranks["stopped"][0]["weights"] == ranks["whole"][0]["weights"]


def test_it_is_the_search_of_one_process(folder: Path, ranks: dict, tmp_path: Path) -> None:
    """With a loss that is the mean over pairs and the same global batch: the same choices, scores up to rounding."""
    data = tmp_path / "data"
    data.mkdir()
    module, _ = search(tmp_path / "run", data, 1)
    alone, together = journal(tmp_path / "run"), journal(folder / "whole")
    assert [line["kind"] for line in alone].count("trial") == 5
    assert len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert {key: value for key, value in one.items() if not key.endswith("score")} == {
            key: value for key, value in two.items() if not key.endswith("score")
        }
        for key in ("score", "parent_score"):
            assert one.get(key, 0.0) == pytest.approx(two.get(key, 0.0), abs=1e-9)
    for name, value in module.state_dict().items():
        if name.endswith(("linear.bias", "network.2.bias")):
            continue  # they move all scores of a query alike: their gradient is rounding, which Adam makes a step of
        assert torch.allclose(torch.tensor(ranks["whole"][1]["weights"][name]), value, atol=1e-5)
    found = [json.loads((place / "trait.json").read_text()) for place in (tmp_path / "run", folder / "whole")]
    for key in ("chosen", "trials", "accepted", "evaluated_pairs", "pool_pairs", "pairs"):
        assert found[0][key] == found[1][key], key
    for part in ("dev", "held_out"):
        for key, value in found[0][part].items():
            assert found[1][part][key] == pytest.approx(value, abs=1e-9), (part, key)
