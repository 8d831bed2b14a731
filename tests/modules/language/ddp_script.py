"""Run by test_ddp.py on two ranks: train, validate, test, predict and export under DDP on the CPU."""

import json
import sys
from pathlib import Path

from tests.modules.language.tiny import corpus, language_model, trainer


def run(folder: Path, devices: int) -> None:
    """Fit on so many devices and write what was logged."""
    data = corpus(folder, batch_size=3)
    module = language_model(sublayer_dropout=0.5, seed=1)
    strategy = "ddp" if devices > 1 else "auto"
    runner = trainer(folder, max_steps=4, devices=devices, strategy=strategy, limit_val_batches=1.0)
    runner.fit(module, data)
    module.save_pretrained(folder / f"model{devices}")
    fresh = language_model(seed=1)
    results = dict(runner.validate(fresh, data, verbose=False)[0])
    results.update(runner.test(fresh, data, verbose=False)[0])
    predicted = runner.predict(fresh, data) or []
    own = [float(value) for batch in predicted for value in batch["loss"]]  # type: ignore[index,call-overload]
    (folder / f"results{devices}-{runner.global_rank}.json").write_text(
        json.dumps({"logged": results, "predicted": own})
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), devices=2)
