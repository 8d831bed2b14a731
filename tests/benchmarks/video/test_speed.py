"""The speed of an untrained pair, grown a little: its rows agree with what was measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.decoding.grow import Shape
from benchmarks.video import speed as video_speed
from benchmarks.video import tables

TINY = Shape(
    hidden_size=256, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    head_dim=128, vocab_size=700,
)  # fmt: skip
OURS = ("Autoregressive", "naive speculation", "SpecVLM 0.9", "LVSpec 0.7")


@pytest.fixture
def rows(video_run, monkeypatch, capsys):
    kept: list[dict] = []
    monkeypatch.setattr(video_speed.rows, "replace", kept.extend)
    monkeypatch.setitem(video_speed.SHAPES, "tiny", TINY)
    # another vocabulary than the target's, as the shapes of one family have
    monkeypatch.setitem(video_speed.SHAPES, "tinier", Shape(128, 96, 2, 1, 1, 128, 640))
    arguments = (
        "--target", str(video_run / "model"), "--draft", str(video_run / "draft"), "--target-shape", "tiny",
        "--draft-shape", "tinier", "--clips", "4x56", "6x112", "--prompts", "2", "--new-tokens", "12", "--runs", "2",
        "--repeats", "2", "--device", "cpu",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["video_speed", *arguments])
    video_speed.main()
    # the decoders' rows are written twice: before those of transformers and with them
    return list({(row["case"], row["method"], row["metric"]): row for row in kept}.values())


def test_rows(rows, capsys, monkeypatch):
    cases = list(dict.fromkeys(row["case"] for row in rows))
    assert len(cases) == 2
    assert "tiny with draft tinier" in cases[0]
    assert "greedy, 8 video tokens (4 frames of 56 pixels)" in cases[0]
    found = {(row["method"], row["metric"]): row for row in rows if row["case"] == cases[1]}
    methods = dict.fromkeys(method for method, _ in found)
    assert tuple(methods) == (*OURS, "transformers generate", "transformers assistant_model")
    assert all(row["grown"] for row in rows)
    for name in methods:
        gain = found[name, "decode_speedup"]
        assert gain["runs"] == (2 if name in OURS else 1)
        if name != "LVSpec 0.7":  # the others are lossless
            assert (gain["identical_rows"], gain.get("relaxed_share", 0)) == (2, 0)
    base = found["Autoregressive", "ms_per_token"]
    assert found["Autoregressive", "decode_speedup"]["value"] == found["Autoregressive", "whole_speedup"]["value"] == 1
    assert base["bound"] < base["value"]
    assert base["T"] == 0
    for name in OURS[1:]:
        gain = found[name, "decode_speedup"]
        assert gain["predicted"] == pytest.approx((gain["T"] + 1) / gain["R"])
        assert gain["draft_share"] > 0
    naive, pruned = (found[name, "decode_speedup"] for name in OURS[1:3])
    assert naive["video_tokens"] == pruned["video_tokens"] == 48
    # 4 of 48 video tokens and the text are left
    assert naive["draft_prompt_tokens"] - pruned["draft_prompt_tokens"] == 44
    assert pruned["draft_kv_of_unpruned"] == pruned["draft_prompt_tokens"] / naive["draft_prompt_tokens"]
    assert 0 < found["LVSpec 0.7", "relevance_share"]["value"] < 1
    monkeypatch.setattr(tables, "read", lambda name: rows)
    table = tables.video_speed()
    assert table.count("| SpecVLM 0.9") == table.count("Scoring relevance takes") == 2
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["SpecVLM 0.9 decode_speedup"] == pytest.approx(pruned["value"], abs=1e-4)


def test_a_clip_that_says_nothing_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["video_speed", "--clips", "32"])
    with pytest.raises(SystemExit):
        video_speed.main()
    assert "FRAMESxSIZE with two whole numbers, got 32" in capsys.readouterr().err


def test_a_failing_peer_costs_none_of_our_rows(capsys):
    def fails(inputs):
        raise RuntimeError("no such cache\nand more")

    def works(inputs):
        return video_speed.Result([1, 2, 3], 0.5, 1.0)

    first, second = video_speed.PEERS
    found = video_speed.measure_peers({first: fails, second: works}, [{}], runs=2)
    assert {name: len(made) for name, made in found.items()} == {second: 2}
    assert f"{video_speed.PEERS[0]} is left out: RuntimeError no such cache\n" in capsys.readouterr().out


def test_drafts_have_their_whole_length():
    """With draft control, a pair whose drafts do not pay would hardly draft, and T would say nothing of the draft."""
    made = video_speed.decoders(None, "eager", ["two_stage", "random"], [0.9, 0.5])
    assert list(made) == [
        "Autoregressive", "naive speculation", "SpecVLM 0.9", "SpecVLM 0.5", "SpecVLM 0.9, random",
        "SpecVLM 0.5, random", "LVSpec 0.7",
    ]  # fmt: skip
    assert {decoder.control for name, decoder in made.items() if name != "Autoregressive"} == {"fixed"}


def test_a_pair_as_it_is(video_run, monkeypatch, capsys):
    kept: list[dict] = []
    monkeypatch.setattr(video_speed.rows, "replace", kept.extend)
    arguments = (
        "--target", str(video_run / "model"), "--draft", str(video_run / "draft"), "--clips", "4x56", "--prompts", "1",
        "--new-tokens", "6", "--runs", "1", "--peer-runs", "0", "--repeats", "1", "--device", "cpu",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["video_speed", *arguments])
    video_speed.main()
    assert "as trained" in kept[0]["case"]
    assert not any(row["grown"] for row in kept)
    monkeypatch.setattr("sys.argv", ["video_speed", *arguments, "--target-shape", "7B"])
    with pytest.raises(SystemExit):
        video_speed.main()
    assert "--draft-shape must be given together" in capsys.readouterr().err
