"""The peer package kvpress on the prompts of the quality benchmark, in its own environment: raw lines like its own.

It imports nothing of this project, because kvpress needs an older transformers. Write the prompts first, with
``python -m benchmarks.compression.quality --write-prompts FILE``. Then, where kvpress is installed:

    python benchmarks/compression/kvpress_rows.py --model MODEL --prompts FILE --label LABEL --length 8192 --raw RAW

A label and a length as those of the other raw file put both into one table. The bytes are those of the tensors that the
cache really holds behind the compression; a press that only masks keys frees none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache

BUDGETS = (0.05, 0.1, 0.2, 0.5)
PRESSES = {
    "kvpress SnapKV": lambda ratio: kvpress.SnapKVPress(compression_ratio=ratio),
    "kvpress PyramidKV": lambda ratio: kvpress.PyramidKVPress(compression_ratio=ratio),
    "kvpress AdaKV": lambda ratio: kvpress.AdaKVPress(kvpress.SnapKVPress(compression_ratio=ratio)),
    "kvpress Knorm": lambda ratio: kvpress.KnormPress(compression_ratio=ratio),
    "kvpress StreamingLLM": lambda ratio: kvpress.StreamingLLMPress(compression_ratio=ratio),
    "kvpress random": lambda ratio: kvpress.RandomPress(compression_ratio=ratio, seed=0),
}


def origin(device: str) -> dict[str, Any]:
    """Where a line comes from, with the keys that the project's own lines have."""
    names = ("torch", "transformers", "kvpress", "numpy")
    if device.startswith("cuda"):
        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        devices = [f"{models[0] if models else platform.machine()} ({os.cpu_count()} cores)"]
    return {
        "commit": None,
        "dirty": None,
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}},
        "device": devices,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": 0,
    }


@torch.inference_mode()
def outcome(model: Any, item: dict[str, Any], press: Any | None, later: bool) -> dict[str, Any]:
    """How a model goes on with the known answer behind a compressed prompt, one token after the other.

    Args:
        model: A model of transformers.
        item: A prompt of the quality benchmark.
        press: ``None`` keeps the whole cache.
        later: Whether the question is read behind the compression.
    """
    prompt, answer = item["prompt"], item["answer"]
    asked = prompt[len(prompt) - item["question"] :] if later else []
    read = torch.tensor([prompt[: len(prompt) - len(asked)]], device=model.device)
    cache = DynamicCache()
    with contextlib.nullcontext() if press is None else press(model):
        logits = model(read, past_key_values=cache, logits_to_keep=1).logits[0, -1:]
        scores = [] if asked else [logits]
        tokens = [*asked, *answer][:-1]
        for place, token in enumerate(tokens):
            step = torch.tensor([[token]], device=model.device)
            position = torch.tensor([[read.shape[1] + place]], device=model.device)
            scores.append(model(step, past_key_values=cache, position_ids=position).logits[0])
        device_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    table = torch.cat(scores)[-len(answer) :].float().log_softmax(-1)
    wanted = torch.tensor(answer, device=table.device)
    return {
        "log_probability": table.gather(1, wanted[:, None])[:, 0].tolist(),
        "right": (table.argmax(-1) == wanted).tolist(),
        "device_bytes": device_bytes,
        "host_bytes": 0,
    }


def lines(model: Any, item: dict[str, Any], names: list[str], budgets: list[float], later: bool) -> Iterator[Any]:
    """One line for each press and budget."""
    for name in names:
        for budget in budgets:
            began = time.perf_counter()
            found = outcome(model, item, PRESSES[name](1 - budget), later)
            yield {
                "task": item["task"], "number": item["number"], "tokens": len(item["prompt"]), "later": later,
                "method": name, "budget": budget, **found, "static": None, "entries": None,
                "seconds": round(time.perf_counter() - began, 4),
            }  # fmt: skip


def main() -> None:
    """Measures all prompts, and adds a line to the raw file for each prompt, press and budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, help="that quality --write-prompts wrote")
    parser.add_argument(
        "--label", required=True, help="what the model is, with its precision, as the other raw file says it"
    )
    parser.add_argument("--length", type=int, required=True, help="as the other raw file says it")
    parser.add_argument("--presses", nargs="+", choices=PRESSES, metavar="PRESS", default=list(PRESSES))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--later", action="store_true", help="the question is read behind the compression")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="bfloat16 on a GPU, else float32")
    parser.add_argument("--raw", required=True)
    chosen = parser.parse_args()
    dtype = chosen.dtype or ("bfloat16" if chosen.device.startswith("cuda") else "float32")
    model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=getattr(torch, dtype)).eval().to(chosen.device)
    shared = {"model": chosen.label, "length": chosen.length, "origin": origin(chosen.device)}
    with Path(chosen.raw).open("a", encoding="utf-8") as raw:
        for text in Path(chosen.prompts).read_text(encoding="utf-8").splitlines():
            item = json.loads(text)
            for line in lines(model, item, chosen.presses, chosen.budgets, chosen.later):
                raw.write(json.dumps({**shared, **line}) + "\n")
            raw.flush()
            print(f"{item['task']} {item['number']}", flush=True)


if __name__ == "__main__":
    main()
