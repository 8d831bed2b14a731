"""The benchmark of further model classes at a width of 64: its rows agree with what was measured."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.decoding import architectures
from benchmarks.decoding.grow import weight_bytes


@pytest.mark.parametrize("name", architectures.SHAPES)
def test_rows(name, monkeypatch, capsys):
    rows: list[dict] = []
    monkeypatch.setattr(architectures, "replace", rows.extend)
    small = ("--scale", "tiny", "--layers", "2", "--prompt-length", "6", "--new-tokens", "4", "--runs", "2")
    monkeypatch.setattr("sys.argv", ["architectures", name, *small, "--device", "cpu", "--dtype", "float32"])
    monkeypatch.setattr("sys.argv", [*sys.argv, "--steps", "1", "3"])
    architectures.main()
    steps = [row for row in rows if row["metric"] == "ms_per_step"]
    assert [row["method"] for row in steps] == ["step of 1 tokens", "step of 3 tokens"]
    rows = [row for row in rows if row not in steps]
    assert {(row["method"], row["metric"]) for row in rows} == {
        (method, metric)
        for method in ("saccade Autoregressive", "transformers generate")
        for metric in ("tokens_per_second", "ms_per_token", "time_to_first_token")
    }
    assert {row["benchmark"] for row in rows} == {"architectures"}
    for row in rows:
        assert (row["identical_rows"], row["rows"], row["runs"], row["degenerate"]) == (1, 1, 2, None)
        assert row["case"].startswith(f"{name} (tiny) 2 layers ")
    assert "saccade Autoregressive" in capsys.readouterr().out


def test_a_method_of_transformers_that_fails_is_left_out(monkeypatch, capsys):
    rows: list[dict] = []
    monkeypatch.setattr(architectures, "replace", rows.extend)
    small = ("--scale", "tiny", "--layers", "1", "--prompt-length", "6", "--new-tokens", "4", "--runs", "1")
    monkeypatch.setattr("sys.argv", ["architectures", "mistral-7b", *small, "--device", "cpu", "--dtype", "float32"])

    def broken(*_: object, **__: object):
        def run(_: torch.Tensor) -> None:
            raise RuntimeError("it broke\nat length")

        return run

    monkeypatch.setattr(architectures, "peer", broken)
    architectures.main()
    assert {row["method"] for row in rows} == {"saccade Autoregressive"}
    assert "transformers generate is left out: RuntimeError it broke\n" in capsys.readouterr().out
    monkeypatch.setattr(architectures, "ours", broken)
    with pytest.raises(RuntimeError, match="it broke"):
        architectures.main()


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gemma-3-4b", 3.88),
        ("mistral-7b", 7.25),
        ("phi-3-mini", 3.82),
        ("qwen2-7b-lora", 7.62),
        ("qwen3-moe-30b-a3b", 30.53),
    ],
)
def test_the_shapes_have_the_published_sizes(name, billions):
    config = architectures.config_of(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=2e-3)
    assert config.sliding_window == (1024 if name == "gemma-3-4b" else None)


def test_of_a_mixture_the_experts_of_one_token_are_counted():
    config = architectures.config_of("qwen3-moe-30b-a3b", "tiny", 2)
    model = architectures.random_model(config, torch.device("cpu"), torch.bfloat16)
    expert = 3 * 64 * 32
    attention = 2 * 64 * 64 + 2 * 32 * 64 + 2 * 16
    layer = 2 * expert + attention + 8 * 64 + 2 * 64  # two experts, the router and two norms
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert weight_bytes(model) == 2 * (2 * layer + 64 + 256 * 64)
