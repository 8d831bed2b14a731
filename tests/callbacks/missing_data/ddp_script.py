"""Run by test_evaluation.py on two ranks: missing-data evaluations; writes the rows of both ranks."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from saccade.callbacks import MissingDataEvaluation
from tests.callbacks.tiny import trainer
from tests.callbacks.tiny_multimodal import SHARES, FirstRankOnly, TinyMultimodal, TinyProtocol, loader, samples


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    results = {}
    for name, count in SHARES.items():
        data = samples(count)
        batches = DataLoader(FirstRankOnly(data, rank), None) if name == "empty" else loader(data)
        callback = MissingDataEvaluation(TinyProtocol(), mask_seeds=2)
        settings = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": name != "empty"}
        runner = trainer(folder / name, callbacks=[callback], **settings)
        seen: list[int] = []
        original = callback._evaluate

        def spy(trainer, module, batch, pool):
            seen.append(len(batch))  # noqa: B023
            original(trainer, module, batch, pool)  # noqa: B023

        callback._evaluate = spy
        runner.test(TinyMultimodal(), batches, verbose=False)
        gathered: list = [None, None]
        dist.all_gather_object(gathered, (sum(seen), callback.rows))
        results[name] = {
            "shares": [share for share, _ in gathered],
            "rows": [rows for _, rows in gathered],
            "metrics": {key: value.item() for key, value in runner.callback_metrics.items()},
        }
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
