"""transformers' own `generate`, measured like a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from saccade.common.timing import clock
from saccade.inference import Decoder, DecodingStats, GenerationOutput, Sampling
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.huggingface.models import device_of
from saccade.inference.huggingface.vision import kept_position_counter, visual_arguments
from saccade.inference.request import Request


class _FirstToken(StoppingCriteria):
    """Stops nothing; notes the time of the first token."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.time: float | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.time is None:
            self.time = clock(self.device)
            self._no = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return self._no


@dataclass
class TransformersGenerate(Decoder):
    """What a user of transformers gets without saccade: ``model.generate`` with its cache, nothing compiled.

    The text is the model's own, so the row also shows whether decoders agree with it. Tokens are drawn from torch's
    generator, seeded by ``sampling``, which is put back afterwards.
    """

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """There is no drafter: ``generate`` is called as a whole.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("transformers' generate is not driven step by step")

    def join(self, model: nn.Module) -> None:
        """Join the forwards of the other ranks: ``generate`` goes on until all ranks are done."""
        self.generate(model, [[1]], max_new_tokens=1, do_sample=False, synced=True)

    def complete(
        self, model: nn.Module, request: Request, *, streamer: Any = None, synced: bool = False
    ) -> GenerationOutput:
        """Generate with ``model.generate``.

        Args:
            model: The target.
            request: The checked prompts, limits and sampling.
            streamer: Not used.
            synced: Whether the ranks go on until all of them are done.

        Returns:
            The sequences and their statistics. All rows of a batch end with the longest one, because ``generate`` does
            not say when each was done, and the memory of the cache is not known.
        """
        network: Any = model
        device = device_of(model)
        longest = max(len(prompt) for prompt in request.prompts)
        ids = torch.tensor([[request.pad] * (longest - len(prompt)) + prompt for prompt in request.prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in request.prompts])
        ids, mask = ids.to(device), mask.to(device)
        inputs: dict[str, Any] = visual_arguments(model, ids, request.visual) if request.visual else {}
        first = _FirstToken(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with (
            _configured(network, request),
            _generator_of(request.sampling, device),
            kept_position_counter(model),
            torch.no_grad(),
        ):
            begin = clock(device)
            sequences = network.generate(
                input_ids=ids,
                attention_mask=mask,
                stopping_criteria=StoppingCriteriaList([first]),
                synced_gpus=synced,
                **inputs,
            )
            seconds = clock(device) - begin
        prefill = (first.time or begin) - begin
        tokens = [_until_end(row, request) for row in sequences[:, longest:].tolist()]
        steps = max(len(row) for row in tokens)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        rows = [
            DecodingStats(
                requests=1,
                prompt_tokens=len(prompt),
                new_tokens=len(row),
                verify_steps=len(row) - 1,
                target_forwards=len(row),
                # rows of a batch end together here: `generate` does not say when each was done
                seconds=seconds,
                prefill_seconds=prefill,
                first_token_seconds=prefill,
                acceptance_histogram={0: len(row) - 1} if len(row) > 1 else {},
                peak_memory_bytes=peak,
            )
            for prompt, row in zip(request.prompts, tokens, strict=True)
        ]
        pooled = rows[0]
        for row in rows[1:]:
            pooled = pooled + row
        pooled = DecodingStats(
            **{**vars(pooled), "seconds": seconds, "prefill_seconds": prefill, "target_forwards": steps}
        )
        return GenerationOutput(request.sequences(tokens), tokens, pooled, rows)


@contextmanager
def _configured(model: Any, request: Request) -> Iterator[None]:
    """Within this context the model's own generation configuration is that of the request, without its penalties.

    ``generate`` would take whatever an argument leaves open from the model's own.
    """
    drawn: dict[str, Any] = {"do_sample": False}
    if request.sampling is not None:
        temperature, top_k, top_p = request.sampling.warpers
        drawn = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    before = model.generation_config
    model.generation_config = GenerationConfig(
        **drawn,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=sorted(request.eos) or None,
        pad_token_id=request.pad,
    )
    try:
        yield
    finally:
        model.generation_config = before


def _until_end(row: Sequence[int], request: Request) -> list[int]:
    """The new tokens of a row up to its EOS, without the padding behind it."""
    end = next((place for place, token in enumerate(row) if token in request.eos), len(row) - 1)
    return list(row[: end + 1])


@contextmanager
def _generator_of(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for a drawn text, and put them back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=sampling is not None):
        if sampling is not None:
            torch.manual_seed((sampling.seed or 0) + (sampling.rows or [0])[0])
        yield
