"""Time decoders side by side on prompts, for the layer search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from saccade.common.progress import Bar
from saccade.inference import Autoregressive, Decoder, DecodingStats, GenerationOutput

# greedy, up to the model's own EOS; penalties of its configuration are left out, as in DecodingEvaluation
_PLAIN = GenerationConfig()


class DecoderTimer:
    """Decodes the same prompts with every decoder that is timed, greedily and up to EOS.

    Args:
        model: The model on its device.
        prompts: Token ids ``[length]`` of each prompt.
        max_new_tokens: Number of tokens generated for each prompt, at most.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], max_new_tokens: int) -> None:
        self.model, self.prompts, self.max_new_tokens = model, prompts, max_new_tokens
        self.device = next(model.parameters()).device

    def texts(self) -> list[tuple[Tensor, Tensor]]:
        """Return each prompt followed by the full model's text, and the tokens of that text."""
        found = []
        for prompt in self.prompts:
            tokens = torch.tensor(self._run(Autoregressive(), prompt).tokens[0], dtype=prompt.dtype)
            found.append((torch.cat([prompt, tokens]), tokens))
        return found

    def paces(self, decoders: Sequence[Decoder], rounds: int, bar: Bar) -> list[list[float]]:
        """Time decoders side by side.

        In every round all decoders decode every prompt. They take turns prompt by prompt, and begin in another order at
        each, so that neither a machine that becomes slower nor a place in the order favours one of them. The first
        round is not counted.

        Args:
            decoders: The decoders.
            rounds: Number of rounds that count.
            bar: A progress bar, which advances with every prompt of every decoder.

        Returns:
            For each decoder the seconds for a token after the first, over all prompts, of each round.
        """
        found: list[list[float]] = [[] for _ in decoders]
        for attempt in range(rounds + 1):
            pooled = [DecodingStats() for _ in decoders]
            for place, prompt in enumerate(self.prompts):
                for turn in range(len(decoders)):
                    chosen = (turn + place + attempt) % len(decoders)
                    pooled[chosen] += self._run(decoders[chosen], prompt).stats
                    bar.advance()
            if attempt:
                for values, stats in zip(found, pooled, strict=True):
                    values.append(stats.time_per_output_token)
        return found

    def steps(self, decoders: int, rounds: int) -> int:
        """Return how often :meth:`paces` advances the bar."""
        return decoders * (rounds + 1) * len(self.prompts)

    def _run(self, decoder: Decoder, prompt: Tensor) -> GenerationOutput:
        return decoder.generate(
            self.model,
            prompt[None].to(self.device),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            generation_config=_PLAIN,
        )
