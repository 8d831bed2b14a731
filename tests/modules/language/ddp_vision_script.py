"""Run by test_ddp.py on two ranks: train, validate and predict under DDP on the CPU."""

import json
import sys
from pathlib import Path

from tests.modules.language.tiny import trainer
from tests.modules.language.tiny_video import CONFIGS, TinyVideo, video_model


def run(folder: Path, devices: int) -> None:
    """Train one step and validate a model that has learned something, on so many devices."""
    results = {}
    for family in CONFIGS:
        # three of five captioned scenes are the first rank's
        settings = {"slot_scenes": 5, "max_answer_tokens": 8}
        strategy = "ddp" if devices > 1 else "auto"
        runner = trainer(folder, max_steps=2, devices=devices, strategy=strategy, limit_val_batches=1.0)
        runner.fit(video_model(family, slot_scenes=0), TinyVideo(family))
        learned = video_model(path=str(folder / family), **settings)
        results[family] = dict(runner.validate(learned, TinyVideo(family), verbose=False)[0])
        predicted = runner.predict(learned, TinyVideo(family)) or []
        results[family]["told"] = {
            int(key): text
            for part in predicted
            for key, text in zip(part["key"], part["answer"], strict=True)  # type: ignore[index,call-overload]
        }
    (folder / f"results{devices}-{runner.global_rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    run(Path(sys.argv[1]), devices=2)
