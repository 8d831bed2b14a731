"""Video token dropout: train a draft model that reads only a part of each video."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saccade.common.checks import check_share
from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.vision import visual_token_ids


class VideoTokenDropout:
    """A hook that hides video tokens from the language part of a model during training (ours).

    A rate is drawn for each sequence uniformly from [0, max_rate], and each of its video tokens is hidden with that
    probability: no other token attends to it, and the other tokens keep their positions in the whole prompt. This
    prepares a draft model of `saccade.inference.SpecVLM`, which reads a tenth of the video tokens at their original
    positions. Without a draw, or in evaluation mode, the output of the model does not change.

    Args:
        model: A vision-language model.
        max_rate: Largest fraction of hidden video tokens of a sequence, 0 to 1.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, model: nn.Module, max_rate: float) -> None:
        check_share("video_dropout", max_rate)
        self.max_rate = max_rate
        self.language = language_part(model)
        self.visual = visual_token_ids(model)
        self._seen: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Register the hook. Calling this again has no effect."""
        if self._handle is None:
            self._handle = self.language.register_forward_pre_hook(self._hide, with_kwargs=True)

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._seen = None

    def draw(self, input_ids: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the visible tokens of a training step.

        Args:
            input_ids: LongTensor [B, L].
            generator: Random generator on the CPU.

        Returns:
            BoolTensor [B, L], False at hidden video tokens.
        """
        rates = torch.rand(len(input_ids), 1, generator=generator) * self.max_rate
        kept = (torch.rand(input_ids.shape, generator=generator) >= rates).to(input_ids.device)
        self._seen = kept | ~torch.isin(input_ids, torch.tensor(self.visual, device=input_ids.device))
        return self._seen

    def clear(self) -> None:
        """Remove the draw: nothing is hidden until the next one."""
        self._seen = None

    def _hide(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._seen is None or not module.training:
            return None
        mask = named.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(self._seen)
        return inputs, named | {"attention_mask": mask * self._seen.to(mask.dtype)}
