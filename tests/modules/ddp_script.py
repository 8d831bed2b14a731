"""Run by test_ddp.py in two processes: train, validate, test, predict and export under DDP on the CPU."""

import json
import sys
from pathlib import Path

from tests.modules.tiny import corpus, language_model, trainer


def main() -> None:
    """Fit on the given number of devices and write what was logged."""
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    data = corpus(folder, batch_size=3)
    module = language_model(sublayer_dropout=0.5, seed=1)
    strategy = "ddp" if devices > 1 else "auto"
    run = trainer(folder, max_steps=4, devices=devices, strategy=strategy, limit_val_batches=1.0)
    run.fit(module, data)
    module.save_pretrained(folder / f"model{devices}")
    fresh = language_model(seed=1)
    results = dict(run.validate(fresh, data, verbose=False)[0])
    results.update(run.test(fresh, data, verbose=False)[0])
    predicted = run.predict(fresh, data) or []
    own = [float(value) for batch in predicted for value in batch["loss"]]  # type: ignore[index,call-overload]
    (folder / f"results{devices}-{run.global_rank}.json").write_text(json.dumps({"logged": results, "predicted": own}))


if __name__ == "__main__":
    main()
