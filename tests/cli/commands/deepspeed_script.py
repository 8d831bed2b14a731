"""Writes a checkpoint as a folder of DeepSpeed, on one CPU: arguments are the file, the stage and the folder."""

import os
import sys
from pathlib import Path

os.environ |= {
    "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}  # fmt: skip

import deepspeed
import torch

from saccade.cli.commands.trained_module import read_checkpoint, trained_module


def main(file: str, stage: str, folder: str) -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    content = read_checkpoint(Path(file))
    module = trained_module(content).train()
    settings = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": int(stage)},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=module, model_parameters=list(module.parameters()), config=settings)
    kept = {name: value for name, value in content.items() if name not in ("state_dict", "optimizer_states")}
    engine.save_checkpoint(folder, tag="checkpoint", client_state=kept)


if __name__ == "__main__":
    main(*sys.argv[1:])
