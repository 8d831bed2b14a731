"""Milliseconds a token and bytes of compressed caches, beside the whole cache and transformers, at 7B shape.

    python -m benchmarks.compression.speed --batch 1 4 16 --length 8192 32768
    python -m benchmarks.compression.speed --batch 4 --length 131072 --one-block --only whole HybridKV
    python -m benchmarks.compression.speed --batch 1 --length 1500 --scale tiny --layers 2 --device cpu

A model of Qwen2 7B's shape with random weights, whose language part is that of Qwen2.5-VL 7B, decodes behind caches
of random keys and values: time and bytes do not depend on them. Those of one layer serve all layers of a compressed
cache, so that the whole cache is never needed beside it. With ``--one-block`` the chunks of all layers lie in one block
of host memory of the size of one layer: for the largest caches, pinning more takes longer than everything else, or
there is not as much. Host bytes are still those that the layers would take.

What a method observes is made up too, so that a quarter of the heads is static for HybridKV. Every step reads the same
token, so that its queries differ by their rotation; with ``--fresh`` it reads the token that the random model writes,
and nearly all chunks that a step wants are new. The share of chunks that had to be fetched is measured; real texts are
between the two. ``--first`` measures the time to the first token instead, by really reading the prompt. All ways of a
case are measured in one process, each with some steps to warm up.

The bound is the time to read the weights and the keys and values that the method keeps, at the measured copy bandwidth.
Bytes are what the allocator gives, without the weights.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from transformers import DynamicCache, PreTrainedModel

from benchmarks.decoding.architectures import config_of, random_model
from benchmarks.decoding.decode import copy_bandwidth
from benchmarks.decoding.grow import weight_bytes
from benchmarks.rows import positive, replace, row
from saccade.common.timing import clock
from saccade.inference import Autoregressive, CacheCompressor, HybridKV, Session, SnapKV
from saccade.inference.compression.observation import Observation
from saccade.inference.engine.cache import KVCache
from saccade.inference.engine.compressed import host_copies, host_memory
from saccade.inference.engine.compressed.cache import RaggedCache
from saccade.inference.engine.config import EngineConfig
from saccade.inference.engine.hf_cache import session_cache
from saccade.inference.engine.pool import EnginePool
from saccade.inference.huggingface.models import cache_bytes, free_bytes
from saccade.inference.trees import MAX_NODES

SHAPE = "qwen2-7b-lora"  # of which only the sizes are used, without its adapter
WARM_UP = 5
METHODS: dict[str, Callable[[float], CacheCompressor | None]] = {
    "whole cache": lambda budget: None,
    "SnapKV": SnapKV,
    "SnapKV, 4 bits": lambda budget: SnapKV(budget, kept_bits=4),
    "HybridKV, all static": lambda budget: HybridKV(budget, theta=0.0),
    "HybridKV": lambda budget: HybridKV(budget, sparsity="threshold", theta=0.9),
    "HybridKV, 8 bits": lambda budget: HybridKV(budget, sparsity="threshold", theta=0.9, host_bits=8),
    "HybridKV, 4 bits": lambda budget: HybridKV(budget, sparsity="threshold", theta=0.9, host_bits=4),
    "HybridKV, all in 4 bits": lambda budget: HybridKV(
        budget, sparsity="threshold", theta=0.9, host_bits=4, kept_bits=4
    ),
    "HybridKV, all fetching": lambda budget: HybridKV(budget, theta=2.0),
    "HybridKV, no pins": lambda budget: HybridKV(budget, theta=2.0, pinned=0.0),
}


def observation(model: PreTrainedModel, length: int, seed: int) -> Observation:
    """Made-up attention of one prompt: every fourth head is sparse.

    Args:
        model: Its numbers of layers and KV heads count.
        length: Tokens of the prompt.
        seed: Of the attention on each key.
    """
    device, heads = model.device, model.config.num_key_value_heads
    draw = torch.Generator(device).manual_seed(seed)
    layers = range(model.config.num_hidden_layers)
    mean = [torch.rand(heads, length, device=device, generator=draw) / length for _ in layers]
    sparse = torch.tensor([(head + 1) % 4 == 0 for head in range(heads)], device=device)
    alive = torch.where(sparse, 0.05, 0.4)
    text = torch.zeros(length, dtype=torch.bool, device=device)
    segments = torch.full((length,), -1, device=device)
    return Observation(mean, [alive for _ in layers], text, segments, (length - 32, length), mean)


def keys_and_values(model: PreTrainedModel, batch: int, slots: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random keys and values ``[batch, kv_heads, slots, head_dim]`` of each layer."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for _ in range(config.num_hidden_layers):
        shape = batch, config.num_key_value_heads, slots, width
        keys, values = (torch.empty(shape, dtype=model.dtype, device=model.device).normal_() for _ in range(2))
        yield keys, values


def session_behind(
    model: PreTrainedModel, compressor: CacheCompressor | None, batch: int, length: int, new: int
) -> Session:
    """A session that has read prompts which nobody wrote.

    Args:
        model: The model.
        compressor: What is left of the prompts; ``None`` is all.
        batch: Rows.
        length: Tokens of every prompt.
        new: Tokens that follow.
    """
    session = Session(model, length + new, pool=EnginePool(EngineConfig("auto")), compressor=compressor)
    if compressor is None:
        session._take_engine(batch)
        free = free_bytes(model.device)
        if free is not None and cache_bytes(model, batch, session.storage.capacity) > free:
            session.storage.capacity = session.capacity + MAX_NODES  # without the room that an engine has to spare
        _fill(model, session.storage, batch)
    else:
        layers = model.config.num_hidden_layers
        whole = KVCache(layers, length)
        keys, values = next(keys_and_values(model, batch, length))
        whole.keys, whole.values = [keys] * layers, [values] * layers
        del keys, values
        plans = [compressor.plan(observation(model, length, seed)) for seed in range(batch)]
        left = RaggedCache(whole, plans, [length] * batch, session.capacity)
        session.storage, session.cache = left, session_cache(left, len(left.chunks))
        session._take_engine(batch, left)
    session.lengths, session.offsets, session._texts = [length] * batch, [0] * batch, [[] for _ in range(batch)]
    return session


def _fill(model: PreTrainedModel, cache: Any, batch: int) -> None:
    for layer, (keys, values) in enumerate(keys_and_values(model, batch, cache.capacity)):
        cache.keys[layer], cache.values[layer] = keys, values


@contextmanager
def one_block() -> Iterator[None]:
    """Context in which the chunks of all layers lie in the same host memory."""
    blocks: list[torch.Tensor | None] = [None, None]  # of keys and of values
    turns = itertools.count()

    def shared(*shape: int, dtype: torch.dtype, pinned: bool) -> torch.Tensor:
        turn, size = next(turns) % 2, math.prod(shape) * dtype.itemsize
        block = blocks[turn]
        if block is None or len(block) < size:
            block = blocks[turn] = host_memory.host_buffer(size, dtype=torch.uint8, pinned=pinned)
        return block[:size].view(dtype).view(shape)

    with patch.object(host_copies, "host_buffer", shared), patch.object(host_memory, "free_host_bytes", lambda: None):
        yield


def allocated(device: torch.device) -> int:
    """Bytes that the allocator has given out; 0 on a processor."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def decode(
    model: PreTrainedModel, compressor: CacheCompressor | None, batch: int, length: int, steps: int, fresh: bool = False
) -> tuple[list[float], dict[str, Any]]:
    """Milliseconds of every step, and what the cache holds."""
    before = allocated(model.device)
    new = WARM_UP + 2 * steps
    with session_behind(model, compressor, batch, length, new) as session, torch.inference_mode():
        taken = allocated(model.device) - before
        storage = session.storage
        tokens = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
        times, moved, wanted = [], 0, 0
        for step in range(new):
            stores = [store for store in getattr(storage, "chunks", []) if store is not None]
            held = [store.slots.clone() for store in stores] if WARM_UP <= step < WARM_UP + steps else []
            begin = clock(model.device)
            logits = session.forward(tokens)
            written = logits[:, -1:].argmax(-1)
            tokens = written if fresh else tokens
            seconds = clock(model.device) - begin
            session.commit([[0]] * batch)
            for store, old in zip(stores, held, strict=False):
                moved, wanted = moved + int((store.slots != old).sum()), wanted + int(store.counts.sum())
            if step >= WARM_UP + steps:  # steps whose chunks are counted are not timed
                times.append(1e3 * seconds)
        extra = {
            "device_bytes": taken or session.cache_bytes,
            "host_bytes": getattr(storage, "host_bytes", 0),
            "kept_bytes": session.cache_bytes,
            "fetched_share": moved / wanted if wanted else None,
        }
    return times, extra


def decode_with_transformers(model: PreTrainedModel, batch: int, length: int, steps: int) -> list[float]:
    """Milliseconds of every step of transformers behind its dynamic cache."""
    cache = DynamicCache(config=model.config)
    for layer, (keys, values) in enumerate(keys_and_values(model, batch, length)):
        cache.update(keys, values, layer)
    tokens, times = torch.zeros(batch, 1, dtype=torch.long, device=model.device), []
    with torch.inference_mode():
        for step in range(WARM_UP + steps):
            begin = clock(model.device)
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1:].argmax(-1)
            seconds = clock(model.device) - begin
            if step >= WARM_UP:
                times.append(1e3 * seconds)
    return times


def first_token(
    model: PreTrainedModel, ways: dict[str, CacheCompressor | None], batch: int, length: int, runs: int
) -> dict[str, list[float]]:
    """Milliseconds until the first token of every way, in turn; one round warms up."""
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(model.config.vocab_size, (batch, length), generator=draw).to(model.device)
    found: dict[str, list[float]] = {name: [] for name in ways}
    decoders = {name: Autoregressive(compressor=compressor) for name, compressor in ways.items()}
    for _ in track(range(runs + 1), description="runs (the first warms up)"):
        for name, decoder in decoders.items():
            begin = clock(model.device)
            with decoder.start(model, prompts, max_new_tokens=2, eos_token_id=()) as run:
                run.prefill()
                found[name].append(1e3 * (clock(model.device) - begin))
            decoder.release()
    return {name: times[1:] for name, times in found.items()}


def main() -> None:
    """Measures every case and writes its rows at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 4, 16])
    parser.add_argument("--length", type=positive, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--steps", type=positive, default=24)
    parser.add_argument("--runs", type=positive, default=3, help="of the time to the first token")
    parser.add_argument("--first", action="store_true", help="measure the time to the first token")
    parser.add_argument("--fresh", action="store_true", help="nearly all chunks that a step wants are new")
    parser.add_argument("--only", nargs="+", help="measure the ways whose name contains one of these words")
    parser.add_argument("--most-bytes", type=float, default=40e9, help="of a whole cache; larger cases are left out")
    parser.add_argument("--one-block", action="store_true", help="the chunks of all layers in the same host memory")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--layers", type=positive, default=28)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    config = config_of(SHAPE, chosen.scale, chosen.layers)
    config.max_position_embeddings = 2 * max(chosen.length)
    model = random_model(config, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    bandwidth, console = copy_bandwidth(device), Console(soft_wrap=True, highlight=False)
    ways = {name: make(chosen.budget) for name, make in METHODS.items() if _wanted(name, chosen.only)}
    for length in chosen.length:
        for batch in chosen.batch:
            shape = "Qwen2 7B shape" if chosen.scale == "full" else "tiny"
            case = f"{shape}, {chosen.layers} layers, batch {batch}, {length} tokens, budget {chosen.budget}"
            case += ", all chunks new" * chosen.fresh
            if chosen.first:
                found = first_token(model, ways, batch, length, chosen.runs)
                replace(
                    [
                        row("compression_speed", case, name, "time_to_first_token", times, "ms")
                        for name, times in found.items()
                    ]
                )
                for name, times in found.items():
                    console.print(f"{case}: {name} first token {min(times):.0f} to {max(times):.0f} ms", markup=False)
                continue
            whole = cache_bytes(model, batch, length)
            if whole > chosen.most_bytes:
                console.print(f"{case}: left out, its whole cache takes {whole:,} bytes", markup=False)
                continue
            _free(device)
            for name, compressor in ways.items():
                try:
                    with one_block() if chosen.one_block else nullcontext():
                        times, extra = decode(model, compressor, batch, length, chosen.steps, chosen.fresh)
                except (torch.OutOfMemoryError, ValueError) as error:  # of the device, of the host
                    console.print(f"{case}: {name} left out, {str(error).splitlines()[0]}", markup=False)
                    _free(device)
                    continue
                _report(
                    console, case, name, times, 1e3 * (weight_bytes(model) + extra["kept_bytes"]) / bandwidth, extra
                )
                _free(device)
            if _wanted("transformers", chosen.only):
                times = decode_with_transformers(model, batch, length, chosen.steps)
                _report(
                    console,
                    case,
                    "transformers, dynamic cache",
                    times,
                    1e3 * (weight_bytes(model) + whole) / bandwidth,
                    {},
                )
                _free(device)


def _wanted(name: str, words: list[str] | None) -> bool:
    return not words or any(word in name for word in words)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        getattr(torch._C, "_host_emptyCache", int)()  # blocks of other sizes would be kept beside new ones


def _report(console: Console, case: str, name: str, times: list[float], bound: float, extra: dict[str, Any]) -> None:
    made = row("compression_speed", case, name, "ms_per_token", times, "ms", bound=bound, extra=extra)
    replace([made])
    held = ", ".join(f"{key} {value:,.3g}" for key, value in extra.items() if value is not None)
    console.print(f"{case}: {name} {made['value']:.3f} ms (bound {bound:.3f}) {held}", markup=False)


if __name__ == "__main__":
    main()
