"""Decodes prompts with whichever version of ``saccade`` is imported, for :mod:`benchmarks.decoding.before_after`.

Reads a JSON object from standard input (``model``, a folder; ``prompts``, lists of ids; ``new_tokens``; ``decoders``,
names; ``threads``) and prints one: ``package``, the folder of ``saccade.inference``, and for each decoder ``tokens``
and ``tokens_per_second``. It uses what all versions have in common, and is run with ``PYTHONPATH`` set to a version.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import saccade.inference


def main() -> None:
    """Reads, decodes everything twice of which the first time warms up, and prints."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32).eval()
    prompts = [torch.tensor([ids]) for ids in asked["prompts"]]
    found = {}
    for name in asked["decoders"]:
        decoder = getattr(saccade.inference, name)()
        for _ in range(2):
            began = time.perf_counter()
            made = [
                decoder.generate(model, ids, max_new_tokens=asked["new_tokens"], eos_token_id=()) for ids in prompts
            ]
            seconds = time.perf_counter() - began
        tokens = [one.tokens[0] for one in made]
        found[name] = {"tokens": tokens, "tokens_per_second": sum(map(len, tokens)) / seconds}
    print(json.dumps({"package": str(Path(saccade.inference.__file__).resolve().parent), "decoders": found}))


if __name__ == "__main__":
    main()
