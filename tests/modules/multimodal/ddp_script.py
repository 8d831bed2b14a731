"""Fit on two processes, then test what came out of it on two and on one."""

import sys
from pathlib import Path

from lightning.pytorch import Trainer

from saccade.modules import T2DR
from tests.modules.multimodal.tiny import tiny_data

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shared = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    module, data = T2DR(width=8, heads=2), tiny_data(eval_batch_size=20)
    two = Trainer(max_epochs=1, devices=2, strategy="ddp", **shared)
    two.fit(module, data)
    two.save_checkpoint(folder / "x.ckpt")
    (scores,) = two.test(module, data, verbose=False)
    if two.is_global_zero:
        (folder / "mae2").write_text(str(scores["test_mae"]))
        import torch.distributed

        torch.distributed.destroy_process_group()
        one = Trainer(devices=1, **shared)
        (scores,) = one.test(T2DR.load_from_checkpoint(folder / "x.ckpt"), tiny_data(), verbose=False)
        (folder / "mae1").write_text(str(scores["test_mae"]))
