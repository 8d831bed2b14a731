"""Two ranks with sharded weights decode with `skip="auto"`; called by test_auto_skip.py with a folder and a rank."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from saccade.inference import SelfSpeculative
from tests.inference.drafting.test_auto_skip import copying


def collective(module: torch.nn.Module, _: tuple) -> None:
    """What a sharded model's forward does: it needs every rank, with the same sub-layers."""
    skipped = sum("forward" in vars(layer) for layer in module.model.layers)
    sums = torch.tensor([1, skipped])
    dist.all_reduce(sums)
    if sums.tolist() != [2, 2 * skipped]:
        raise RuntimeError("ranks are out of step")


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    model, decoder = copying(), SelfSpeculative(draft_length=4)
    model.register_forward_pre_hook(collective)
    texts = []
    # the first prompts are too short together, the second are enough; rank 1 has none in the last round
    for prompts in ([[3, 1, 4]], [list(range(1, 30 - 10 * rank))], [list(range(1, 20))]):
        if rank and len(texts) == 2:
            decoder.join(model)
        else:
            texts.append(decoder.generate(model, prompts, max_new_tokens=8 + 4 * rank, synced=True).tokens)
    (folder / f"{rank}.json").write_text(json.dumps({"skip": decoder.skip_set(model), "texts": texts}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
