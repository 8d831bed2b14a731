"""Streams hand out exactly the tokens of the result, in verified pieces."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer, TextStreamer

from saccade.inference import Autoregressive, Sampling
from tests.support.decoders import DECODERS, Proposing
from tests.support.models import prompts, tiny_model
from tests.support.processes import TIME_LIMIT

MODEL = tiny_model(residual=0.3)
BATCH = prompts(MODEL, [9, 4])


class Numbers:
    """A tokenizer whose text is the ids."""

    clean_up_tokenization_spaces = False

    def decode(self, tokens: list[int], **settings: Any) -> str:
        return "".join(f"{token} " for token in tokens)


@pytest.mark.parametrize("sampling", [None, Sampling(seed=1)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", DECODERS)
def test_stream_yields_the_tokens_of_generate(name: str, sampling: Sampling | None) -> None:
    out = DECODERS[name](MODEL).generate(MODEL, **BATCH, max_new_tokens=20, sampling=sampling, eos_token_id=[3, 5])
    rows: list[list[int]] = [[], []]
    rounds = 0
    stream = DECODERS[name](MODEL).stream(MODEL, **BATCH, max_new_tokens=20, sampling=sampling, eos_token_id=[3, 5])
    for new in stream:
        assert len(new) == 2
        assert any(new)
        rounds += 1
        for row, tokens in zip(rows, new, strict=True):
            row += tokens
    assert rows == out.tokens
    assert rounds == out.stats.target_forwards


@pytest.mark.parametrize("name", DECODERS)
def test_text_streamers_get_the_final_tokens(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = BATCH["input_ids"][:1]
    for skip_prompt in (True, False):
        streamer = TextStreamer(Numbers(), skip_prompt=skip_prompt)
        out = DECODERS[name](MODEL).generate(MODEL, ids, max_new_tokens=20, streamer=streamer)
        expected = out.tokens[0] if skip_prompt else out.sequences[0].tolist()
        assert capsys.readouterr().out == "".join(f"{token} " for token in expected) + "\n"


@pytest.mark.parametrize("name", DECODERS)
def test_an_iterator_streamer_in_a_thread(name: str) -> None:
    ids = BATCH["input_ids"][:1]
    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=TIME_LIMIT)
    outs: list[Any] = []
    decoder = DECODERS[name](MODEL)
    thread = Thread(target=lambda: outs.append(decoder.generate(MODEL, ids, max_new_tokens=20, streamer=streamer)))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert [int(token) for token in text.split()] == outs[0].tokens[0]


def test_a_streamer_never_sees_a_token_that_was_not_verified() -> None:
    right = Autoregressive().generate(MODEL, BATCH["input_ids"][:1], max_new_tokens=20).tokens[0]
    wrong = next(token for token in range(40) if token not in right)
    seen: list[torch.Tensor] = []

    class Recorder:
        def put(self, value: torch.Tensor) -> None:
            seen.append(value)

        def end(self) -> None:
            seen.append(torch.tensor([-1]))

    decoder = Proposing(lambda text, limit: [wrong] * 6)
    decoder.generate(MODEL, BATCH["input_ids"][:1], max_new_tokens=20, streamer=Recorder())
    assert torch.equal(seen[0], BATCH["input_ids"][:1])
    assert torch.cat([*seen[1:-1]]).tolist() == right
    assert seen[-1].tolist() == [-1]
