"""Compiles every kernel of the engine for compute capability 9.0, without a GPU; run by test_compile.py.

The interpreter that tests use on a processor is laxer than the compiler: it lets a variable change its shape in a loop.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saccade.inference.compression.precision import CHANNEL, GROUP, TOKEN, ranges_bytes, row_bytes
from saccade.inference.engine.kernels import (
    adapters,
    chunks,
    decode_attention,
    experts,
    linear,
    noise,
    norms,
    observe,
    rotation,
)

SPECIAL = {
    **dict.fromkeys(("lengths", "starts", "ancestors", "depths", "positions", "seeds", "bases", "shifts"), "*i64"),
    **dict.fromkeys(("units", "counts", "slots", "asking", "first", "many", "places", "hosts", "ends"), "*i64"),
    **dict.fromkeys(("sums", "logs", "picked", "low", "scores"), "*fp32"),
    **dict.fromkeys(("tops", "totals", "mean", "alive", "last"), "*fp32"),
    **dict.fromkeys(("blocked", "wants", "missing", "filled", "seen"), "*u8"),
    **dict.fromkeys(("packed_keys", "packed_values"), "*u8"),
    **dict.fromkeys(("group_first", "group_counts"), "*i64"),
    **dict.fromkeys((f"{name}_{index}" for name in ("down", "up") for index in range(3)), "*fp32"),  # adapters
    **dict.fromkeys(("chosen", "where", "queue"), "*i32"),
    "noise": "*fp64",
}
FLOATS = ("eps", "after_eps", "factor", "scale", "scale_0", "scale_1", "scale_2", "cap", "least")
NUMBERS = (  # integers
    "rows",
    "late",
    "depth",
    "size_0",
    "size_1",
    "size_2",
    "rank_0",
    "rank_1",
    "rank_2",
    "logits_row",
    "width",
    "count",
    "experts",
    "input_row",
    "out_row",
    "nodes",
    "vocabulary",
    "heads",
    "kv_heads",
    "groups",
    "head_dim",
    "packed_row",
    "angle_row",
    "query_b",
    "query_h",
    "query_n",
    "key_b",
    "key_h",
    "key_s",
    "value_b",
    "value_h",
    "value_s",
    "cache_b",
    "cache_h",
    "cache_s",
    "length_b",
    "length_h",
    "window",
    "span",
    "batch",
    "slots_each",
    "first_row",
    "keys_each",
)

ODD = (
    "batch", "slots_each", "rows", "nodes", "span", "count", "groups", "heads", "kv_heads",
    "rank_0", "rank_1", "rank_2", "first_row", "keys_each",
)  # fmt: skip
"""Integers that need not be multiples of 16; sizes of models are."""

SHARED = 227 * 1024  # bytes that a block may use
REGISTERS = 65536  # of a multiprocessor
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(kernel: Any, dtype: str, warps: int, stages: int = 3, **constants: Any) -> str:
    """The PTX of a kernel, which must fit in shared memory."""
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            signature[name] = "fp32" if name in FLOATS else SPECIAL.get(name, f"*{dtype}")
    places = {name: index for index, name in enumerate(kernel.arg_names)}
    aligned = {
        (places[name],): [["tt.divisibility", 16]]
        for name, kind in signature.items()
        if kind.startswith("*") or (kind == "i32" and name not in ODD)
    }
    source = ASTSource(kernel, signature, {(places[name],): value for name, value in constants.items()}, aligned)
    options = {"num_warps": warps, "num_stages": stages, "launch_pdl": constants["EARLY"]}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    used = made.metadata.shared
    assert used <= SHARED, f"{kernel.__name__} of {dtype} with {constants} needs {used} bytes of shared memory"
    if kernel in STREAMS + PRODUCTS and dtype != "fp32":  # exact products are not made to be fast
        name = f"{kernel.__name__} of {dtype} with {constants}"
        registers, stack = resources(made.asm["cubin"])
        assert stack == 0, f"{name} keeps {stack} bytes of registers in memory"
        # 12 warps of a multiprocessor, with 4 loads of 512 bytes each, hide the latency of memory
        running = REGISTERS // (registers * 32 * warps) * warps
        assert kernel in PRODUCTS or running >= 12, f"{name} takes {registers} registers"
    return str(made.asm["ptx"])


def resources(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and the bytes of those that did not fit and are in memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        shown = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return int(re.search(r"REG:(\d+)", shown.stdout)[1]), int(re.search(r"STACK:(\d+)", shown.stdout)[1])


STREAMS = (linear._stream, experts._open_row, experts._shut_row)  # of one row
PRODUCTS = (experts._open_rows, experts._shut_rows, adapters._inner)


def tiles(size: int, gated: bool) -> set[tuple[int, int, int, int, int, int]]:
    """Every tile of products of 16 to 64 rows of small to large models; rows come first, one part or several last."""
    found = set()
    for rows, outputs in itertools.product((16, 64), (1024, 2048, 3584, 5120, 8192, 11008, 18944, 27648)):
        found.add((rows, *linear._product_tile(rows, outputs, size, gated), 1))
        for depth in (outputs, 4 * outputs):
            found.add((rows, *linear._close_tile(rows, outputs, depth, size)[:4], 4))
    return found


def chosen(found: set[tuple[int, int, int, int, int, int]]) -> list[tuple[int, int, int, int, int, int]]:
    """All tiles of 64 rows, which need the most memory; of those of 16 rows, which multiply otherwise, two."""
    few = [sorted(tile for tile in found if tile[0] == 16 and tile[-1] == splits) for splits in (1, 4)]
    return sorted({tile for tile in found if tile[0] == 64}.union(*((tiles[0], tiles[-1]) for tiles in few if tiles)))


def mixtures(dtype: str, size: int, flag: bool, shared: dict[str, Any]) -> list[str]:
    """The four kernels of mixtures of experts, at the tiles of Qwen3 30B-A3B or, without the flag, of Mixtral 8x7B."""
    width, depth, number, count = (768, 2048, 128, 8) if flag else (14336, 4096, 8, 2)
    (block, step, warps), (outputs, part, part_warps) = experts._row_tiles(width, depth, count, size)
    row = {"EVEN": flag, "EXPERTS": number, "EARLY": shared["EARLY"]}
    opened = {"NORM": flag, "SHIFT": 0.0, "GATED": 1 + flag, "OUTPUTS": block, "DEPTH": step}
    shut = {"NORMALISED": flag, "COUNT": count, "OUTPUTS": outputs, "STEP": part}
    made = [
        compiled(experts._open_row, dtype, warps, **row, **opened),
        compiled(experts._shut_row, dtype, part_warps, **row, **shut),
    ]
    rows = 16 if flag else 64
    first, second = experts._rows_tiles(size)
    both = {"EVEN": flag, "EXPERTS": number, "ROWS": rows, **shared}
    more = ({"GATED": 1 + flag}, {"NORMALISED": flag, "COUNT": count})
    for kernel, tile, own in zip((experts._open_rows, experts._shut_rows), (first, second), more, strict=True):
        block, step, warps, stages = tile
        made.append(compiled(kernel, dtype, warps, stages, OUTPUTS=block, DEPTH=step, **both, **own))
    return made


def retrieval(dtype: str, precision: str, flag: bool) -> list[str]:
    """The kernels of observation and of chunks, for prompts of 30,000 tokens or, without the flag, of 128,000."""
    size = {"fp32": 4}.get(dtype, 2)
    each = {"ASKING": flag, "EARLY": True}
    score = {"BOUNDS": flag, "ROWS": 16, "TILE": 64, "WIDTH": 128, "PRECISION": precision, "UPCAST": False}
    choose = {"BITS": 8 * size, "CHUNKS": 2048 if flag else 8192, "SLOTS": 128 if flag else 512}
    observed = {"ROWS": 64, "TILE": 64, "WIDTH": 128, "PRECISION": precision, "UPCAST": False, "EARLY": True}
    return [
        compiled(chunks._score, dtype, 4, **score, **each),
        compiled(chunks._choose, dtype, 8 if flag else 16, **choose, **each),
        compiled(observe._peaks, dtype, 4, **observed, SPLITS=32),
        compiled(observe._weigh, dtype, 4, **observed, LATE=flag),
        *(fetching(dtype, size, bits) for bits in (16, 8, 4)),
    ]


def packed_rows(size: int, bits: int, tokens: int) -> dict[str, int]:
    """Settings of a kernel that reads packed tokens of 128 dimensions."""
    return {
        "BITS": bits,
        "KEY_STEPS": ranges_bytes(128, size),
        "KEY_ROW": row_bytes(tokens, 128, size, bits, CHANNEL),
        "VALUE_STEPS": ranges_bytes(tokens, size),
        "VALUE_ROW": row_bytes(tokens, 128, size, bits, TOKEN),
    }


def fetching(dtype: str, size: int, bits: int) -> str:
    """The kernel that fetches chunks; a thread reads 16 bytes of host memory at once."""
    each = {"CHUNK": 16, "WIDTH": 128, "ROWS": 16, "COLUMNS": 128, "EARLY": True}
    ptx = compiled(chunks._fetch, dtype, 4 if bits == 16 else 1, **each, **packed_rows(size, bits, 16))
    assert ptx.count("ld.global.v4.b32") >= 2, "keys and values"
    assert ptx.count("ld.global.b8") <= 2, "single bytes are read of the tables only"
    return ptx


def main() -> None:
    """Compiles all of them and prints how many there were."""
    made = []
    for early, gated, even in itertools.product((True, False), repeat=3):
        peel = early ^ gated ^ even  # any three of the four flags come in all combinations
        stream = {"NORM": gated, "BIAS": even, "RESIDUAL": not gated, "GATED": 2 * gated, "EVEN": even, "PEEL": peel}
        stream |= {"SHIFT": float(even), "RANK": 16 * (not even), "PARTS": 16}
        ptx = compiled(linear._stream, "bf16", 2, **stream, OUTPUTS=4, DEPTH=256, EARLY=early)
        assert ("griddepcontrol.wait" in ptx) == early
        before = ptx.split("griddepcontrol.wait")[0]
        assert not early or ("ld.global" in before) == peel, "only a peeled tile may be loaded before the wait"
        made.append(ptx)
    for dtype, precision, size in (("bf16", "tf32", 2), ("fp16", "tf32", 2), ("fp32", "ieee", 4)):
        for flag in (True, False):
            shared = {"BIAS": flag, "EVEN": flag, "PRECISION": precision, "UPCAST": False, "EARLY": True}
            wanted = chosen(tiles(size, flag))
            if not flag:  # what is read in parts is not gated either way
                wanted = [tile for tile in wanted if tile[-1] == 1]
            if dtype == "fp16":  # as large as bf16
                wanted = wanted[:1]
            elif dtype == "fp32" or not flag:  # the largest: last are those of 64 rows
                wanted = wanted[-1:]
            for rows, outputs, depth, warps, stages, splits in wanted:
                product = shared | {"ROWS": rows, "OUTPUTS": outputs, "DEPTH": depth, "SPLITS": splits}
                gated = int(flag and splits == 1)
                made.append(
                    compiled(linear._product, dtype, warps, stages, **product, GATED=gated, RANK=16 * gated, PARTS=16)
                )
            if dtype != "fp16":
                step, parts = adapters.inner_tile(4096, dtype == "fp32")
                inner = {"NORM": flag, "SHIFT": 1.0, "ROWS": 16 if flag else 64, "OUTPUTS": 16, "DEPTH": step}
                inner |= {"PARTS": parts, "PRECISION": precision, "UPCAST": dtype != "fp32", "EARLY": True}
                made.append(compiled(adapters._inner, dtype, 4, **inner))
            close = {"BIAS": flag, "SHIFT": float(flag), "AFTER": flag, "AFTER_SHIFT": 0.0, "SPLITS": 4, "LANES": 1024}
            made.append(compiled(norms._close, dtype, 8, **close, EARLY=True))
            shift = float(flag)
            made.append(
                compiled(rotation._rotate, dtype, 1, NORM=flag, SHIFT=shift, FLAT=flag, HALF=64, LANES=64, EARLY=True)
            )
            if dtype == "bf16" or (flag and dtype == "fp32"):  # half precision is as large as bfloat16
                made += mixtures(dtype, size, flag, {key: shared[key] for key in ("PRECISION", "UPCAST", "EARLY")})
            if dtype != "fp16":
                made += retrieval(dtype, precision, flag)
            attend = {"HAS_STARTS": flag, "FLAT": not flag, "HOLES": not flag, "SPLITS": 4, "ROWS": 16, "SLOTS": 32}
            attend |= {"WIDTH": 128, "PADDED": flag}
            attend |= {"PRECISION": precision, "UPCAST": False, "EARLY": True}
            if not flag and dtype != "fp16":
                for bits in (8, 4) if dtype == "bf16" else (4,):
                    more = packed_rows(size, bits, GROUP)
                    more |= {"GROUP": GROUP, "HEAD": 128, "WINDOW": False, "CAP": False}
                    made.append(compiled(decode_attention._attend, dtype, 4, **attend, **more))
                    assert made[-1].count("ld.global.b8") < 16, "single bytes are read of the holes only"
            attend |= {**dict.fromkeys(packed_rows(size, 4, GROUP), 0), "BITS": 16, "GROUP": GROUP, "HEAD": 0}
            # all settings are compiled for bf16; fp16 is as large, and of fp32 the kernel that needs the most is
            wanted = {"bf16": (False, True) if flag else (False,), "fp16": (False,) * flag, "fp32": (True,) * flag}
            for more in wanted[dtype]:
                made.append(compiled(decode_attention._attend, dtype, 4, **attend, WINDOW=more, CAP=more))
        made.append(compiled(norms._normalize, dtype, 8, SHIFT=0.0, LANES=1024, EARLY=True))
        for sinks in (False, True) if dtype == "bf16" else (False,):
            made.append(compiled(decode_attention._join, dtype, 4, SINKS=sinks, SPLITS=4, WIDTH=128, EARLY=True))
    made.append(compiled(noise._gumbel, "bf16", 4, LANES=1024, EARLY=True))
    print(len(made))


if __name__ == "__main__":
    main()
