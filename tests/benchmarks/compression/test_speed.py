"""The benchmark of the speed of compressed caches: what it measures weighs what the setting says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.compression.speed import METHODS, decode, one_block
from benchmarks.decoding.architectures import config_of, random_model


@pytest.fixture(scope="module")
def model():
    config = config_of("qwen2-7b-lora", "tiny", 2)
    config.max_position_embeddings = 4000
    return random_model(config, torch.device("cpu"), torch.float32)


def test_fewer_bits_are_fewer_bytes_in_host_memory_and_one_block_is_counted_as_many(model) -> None:
    host, kept = {}, {}
    for name in ("HybridKV", "HybridKV, 8 bits", "HybridKV, 4 bits"):
        _, plain = decode(model, METHODS[name](0.1), 2, 1500, 1)
        with one_block():
            _, shared = decode(model, METHODS[name](0.1), 2, 1500, 1)
        assert shared["host_bytes"] == plain["host_bytes"]
        host[name], kept[name] = plain["host_bytes"], plain["kept_bytes"]
    assert host["HybridKV"] > 2 * host["HybridKV, 8 bits"] > 2 * host["HybridKV, 4 bits"]
    assert len(set(kept.values())) == 1
    assert decode(model, METHODS["SnapKV"](0.1), 2, 1500, 1)[1]["host_bytes"] == 0
