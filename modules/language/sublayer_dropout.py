"""Sub-layer dropout: train a model whose attention and MLP sub-layers can be skipped."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saccade.common.checks import check_share
from saccade.inference.huggingface.sublayer_skip import decoder_layers, sublayers


class SublayerDropout:
    """Forward hooks that drop whole attention and MLP sub-layers per sequence during training.

    A rate is drawn for each sequence uniformly from [0, max_rate], and each of its sub-layers is dropped with that
    probability. A dropped sub-layer adds nothing to the residual stream and nothing is rescaled, exactly as when
    `saccade.inference.SelfSpeculative` skips it. A model trained in this way is a good draft of itself.

    A mask multiplies the output of a sub-layer, so every module runs and every parameter stays in the graph, as DDP and
    ZeRO-3 need. The masks of a step are drawn once, before the forward pass, so that gradient checkpointing recomputes
    with the same masks. Without masks, or in evaluation mode, the output of the model does not change.

    Measured on held-out Python sources (6 layers, 0.4 M tokens, CPU): loss of the whole model in nats per token, and
    greedy agreement with a random half of the sub-layers skipped. No dropout: 4.29 and 0.19. Half of the sequences
    without dropout, the others at rate 0.7: 4.83 and 0.51. A fixed rate of 0.35: 4.75 and 0.50. Uniform rates up to
    0.7: 4.78 and 0.53. The same, rising from 0 over the first half of the run, as in `LanguageModel`: 4.63 and 0.50.

    Args:
        model: A Hugging Face causal language model.
        max_rate: Largest drop rate of a sequence, 0 to 1.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, model: nn.Module, max_rate: float) -> None:
        check_share("sublayer_dropout", max_rate)
        self.max_rate = max_rate
        self.sublayers: list[nn.Module] = []
        for layer in decoder_layers(model):
            self.sublayers += sublayers(layer)
        self._keep: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks. Calling this again has no effect."""
        if not self._handles:
            self._handles = [
                sublayer.register_forward_hook(self._hook(index)) for index, sublayer in enumerate(self.sublayers)
            ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._keep = None

    def draw(self, sequences: int, generator: torch.Generator, device: torch.device, scale: float = 1.0) -> Tensor:
        """Draw the masks of one training step.

        Args:
            sequences: Batch size.
            generator: Random generator on the CPU.
            device: Device of the model.
            scale: Multiplier of the largest rate, 0 to 1.

        Returns:
            1.0 where a sub-layer is kept and 0.0 where it is dropped, float [2 * layers, sequences]; row 2i is the
            attention of layer i, row 2i + 1 its MLP.
        """
        rates = torch.rand(sequences, generator=generator) * self.max_rate * scale
        drawn = torch.rand(len(self.sublayers), sequences, generator=generator)
        self._keep = (drawn >= rates).float().to(device)
        return self._keep

    def clear(self) -> None:
        """Remove the masks: nothing is dropped until the next `draw`."""
        self._keep = None

    def _hook(self, index: int) -> Callable[[nn.Module, Any, Any], Any]:
        def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
            if self._keep is None or not module.training:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden * self._keep[index].to(hidden.dtype)[:, None, None]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return drop
