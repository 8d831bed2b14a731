"""Run by test_distributed.py on two ranks: validations; writes every rank-0 row and every share."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from saccade.callbacks import LayerSkipSearch
from saccade.callbacks.decoding import evaluation as decoding_evaluation
from tests.callbacks.decoding.scenarios import SCENARIOS, evaluation, prompts_evaluation
from tests.callbacks.tiny import TinyModule, loader, rows, trainer


def collective(module: torch.nn.Module, _: tuple) -> None:
    """What a sharded model's forward does: it needs every rank."""
    ones = torch.ones(1)
    dist.all_reduce(ones)
    if ones.item() != dist.get_world_size():
        raise RuntimeError("ranks are out of step")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    results: dict = {}
    for name, scenario in SCENARIOS.items():
        for synced in (False, True):
            callback = evaluation(scenario)
            shares: list[int] = []
            original = decoding_evaluation._Evaluation.__init__

            def spy(self: object, settings: object, model: object, share: list, *rest: object) -> None:
                shares.append(len(share))  # noqa: B023
                original(self, settings, model, share, *rest)  # noqa: B023

            decoding_evaluation._Evaluation.__init__ = spy
            decoding_evaluation.shards_parameters = lambda _: synced  # noqa: B023
            module = TinyModule()
            if synced:
                module.model.register_forward_pre_hook(collective)
            runner: Trainer = trainer(folder / name, strategy="ddp", devices=2, callbacks=[callback])
            runner.validate(module, loader(scenario.ids), verbose=False)
            decoding_evaluation._Evaluation.__init__ = original
            gathered: list = [None, None]
            dist.all_gather_object(gathered, (shares[0], callback.rows))
            results[f"{name}/{'synced' if synced else 'free'}"] = {
                "shares": [share for share, _ in gathered],
                "rows": [rows for _, rows in gathered],
                "metrics": {key: value.item() for key, value in runner.callback_metrics.items()},
            }
    for synced in (False, True):
        decoding_evaluation.shards_parameters = lambda _: synced  # noqa: B023
        callback, module, data = prompts_evaluation(folder)
        if synced:
            module.model.register_forward_pre_hook(collective)
        runner = trainer(folder / "prompts", strategy="ddp", devices=2, callbacks=[callback])
        runner.validate(module, data, verbose=False)
        gathered = [None, None]
        dist.all_gather_object(gathered, callback.rows)
        results[f"prompts/{'synced' if synced else 'free'}"] = gathered
    search = LayerSkipSearch(trials=2, finalists=1, repeats=1, prompt_length=6, max_new_tokens=4, draft_length=2)
    trainer(folder / "search", strategy="ddp", devices=2, callbacks=[search]).validate(
        TinyModule(), loader(rows(6)), verbose=False
    )
    found: list = [None, None]
    dist.all_gather_object(found, search.result)
    results["search"] = {"agree": found[0] == found[1], "trials": found[1].trials}
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
