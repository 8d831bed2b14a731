"""Two processes must report what one process reports, to the last count."""

import json
from pathlib import Path

import pytest

from tests.callbacks.decoding.scenarios import SCENARIOS, evaluation, prompts_evaluation, write_prompt_files
from tests.callbacks.tiny import TinyModule, loader, trainer
from tests.support.processes import run_ranks

COUNTS = (
    "requests",
    "prompt_tokens",
    "new_tokens",
    "verify_steps",
    "drafted",
    "accepted",
    "target_forwards",
    "draft_forwards",
    "acceptance_histogram",
    "kv_cache_bytes",
    "kv_host_bytes",
    "mean_acceptance_length",
    "draft_acceptance_rate",
)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("ddp")
    write_prompt_files(folder)
    run_ranks("tests.callbacks.decoding.ddp_script", folder)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("synced", ["free", "synced"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_totals_of_two_ranks_equal_those_of_one(two_processes: dict, tmp_path: Path, name: str, synced: str) -> None:
    scenario = SCENARIOS[name]
    callback = evaluation(scenario)
    runner = trainer(tmp_path, callbacks=[callback])
    runner.validate(TinyModule(), loader(scenario.ids), verbose=False)
    result = two_processes[f"{name}/{synced}"]
    expected = min(len(scenario.ids), scenario.max_prompts)
    assert sum(result["shares"]) == expected
    assert result["rows"][0][0]["ranks"] == 2
    for rank in range(2):
        for one, two in zip(callback.rows, result["rows"][rank], strict=True):
            assert one["name"] == two["name"]
            assert one["statistics"]["requests"] == expected
            for count in COUNTS:
                assert two["statistics"][count] == one["statistics"][count], (one["name"], count)
            assert two["agreement"] == one["agreement"]
            assert two["quality"] == one["quality"]
            assert two["compression"] == one["compression"]
            for figure in ("mean_acceptance_length", "draft_acceptance_rate"):
                assert two["per_request"][figure] == pytest.approx(one["per_request"][figure], abs=1e-12)
    for row in callback.rows:
        key = f"decoding/{row['name']}/accepted"
        assert result["metrics"][key] == runner.callback_metrics[key].item()


@pytest.mark.parametrize("synced", ["free", "synced"])
def test_prompts_of_files_are_counted_on_two_ranks_as_on_one(two_processes: dict, tmp_path: Path, synced: str) -> None:
    write_prompt_files(tmp_path)
    callback, module, data = prompts_evaluation(tmp_path)
    trainer(tmp_path, callbacks=[callback]).validate(module, data, verbose=False)
    for ranks in two_processes[f"prompts/{synced}"]:
        for one, two in zip(callback.rows, ranks, strict=True):
            for key in ("name", "category", "agreement", "quality", "skipped", "cut", "prompts", "prompt_length"):
                assert two[key] == one[key], (one["name"], one["category"], key)
            for count in ("requests", "prompt_tokens", "new_tokens", "target_forwards", "accepted"):
                assert two["statistics"][count] == one["statistics"][count], (one["name"], count)
    whole = callback.rows[0]
    assert (whole["skipped"], whole["statistics"]["requests"], whole["quality"]["turns_left_out"]) == (["long"], 10, 1)


def test_the_scenarios_cover_unequal_and_empty_shares(two_processes: dict) -> None:
    shares = {name: two_processes[f"{name}/free"]["shares"] for name in SCENARIOS}
    assert 0 in shares["one"]
    assert shares["padded"][0] != shares["padded"][1]


def test_rank_0_searches_and_every_rank_knows(two_processes: dict) -> None:
    assert two_processes["search"] == {"agree": True, "trials": 2}
