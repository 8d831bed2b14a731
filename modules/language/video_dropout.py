"""Video token dropout: train a draft that reads a part of each video."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saccade.inference.huggingface.models import language_part
from saccade.inference.huggingface.vision import visual_token_ids


class VideoTokenDropout:
    """A hook that hides video tokens from a model's language part during training; source: ours.

    Each sequence draws its own rate uniformly from [0, max_rate], then each of its video tokens is hidden with that
    probability: no other token attends to it, and all keep the places that they have in the whole prompt. So the draft
    of `saccade.inference.SpecVLM`, which keeps a tenth of the video at its original positions, reads later what it was
    trained on. Without a draw, or in evaluation mode, the model computes what it always does.

    Args:
        model: A vision-language model.
        max_rate: Largest share of a sequence, 0 to 1.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, model: nn.Module, max_rate: float) -> None:
        if not 0 <= max_rate <= 1:
            raise ValueError(f"video_dropout: must lie between 0 and 1, but is {max_rate}")
        self.max_rate = max_rate
        self.language = language_part(model)
        self.visual = visual_token_ids(model)
        self._seen: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Register the hook; calling it again changes nothing."""
        if self._handle is None:
            self._handle = self.language.register_forward_pre_hook(self._hide, with_kwargs=True)

    def remove(self) -> None:
        """Take the hook off again."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._seen = None

    def draw(self, input_ids: Tensor, generator: torch.Generator) -> Tensor:
        """Draw which tokens of a training step are seen.

        Args:
            input_ids: LongTensor [B, L].
            generator: CPU generator; its state decides.

        Returns:
            BoolTensor [B, L], False at hidden video tokens.
        """
        rates = torch.rand(len(input_ids), 1, generator=generator) * self.max_rate
        kept = (torch.rand(input_ids.shape, generator=generator) >= rates).to(input_ids.device)
        self._seen = kept | ~torch.isin(input_ids, torch.tensor(self.visual, device=input_ids.device))
        return self._seen

    def clear(self) -> None:
        """Forget the draw: until the next one, nothing is hidden."""
        self._seen = None

    def _hide(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self._seen is None or not module.training:
            return None
        mask = named.get("attention_mask")
        if mask is None:
            mask = torch.ones_like(self._seen)
        return inputs, named | {"attention_mask": mask * self._seen.to(mask.dtype)}
