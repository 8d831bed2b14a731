"""Draft models that are named by a path: loaded once, in the target's precision and on its device, and checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from saccade.common.checks import check_place
from saccade.inference.huggingface.loading import load_model
from saccade.inference.huggingface.models import context_length, device_of, precision_of, text_config
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.inference.request import Request

# Vocabularies of one tokenizer differ where their embeddings are padded to different multiples (Qwen2.5: 151,936 ids up
# to 3B, 152,064 above; Pythia: 50,304, 50,432 and 50,688).
_PADDED_TO = 8
_MOST_PADDING = 512


def draft_for(
    given: nn.Module | str,
    model: nn.Module,
    request: Request,
    loaded: dict[str, nn.Module],
    device: torch.device | None = None,
) -> nn.Module:
    """The draft model for a target.

    Args:
        given: A loaded model, or the path or hub id of one.
        model: The target.
        request: What is about to be generated.
        loaded: The draft models that the decoder has loaded, by path, device and precision.
        device: Where a path is loaded to; ``None`` is the target's device.

    Raises:
        ValueError: It cannot be loaded, has another vocabulary, is of another family where videos are read, or its
            context is too short.
    """
    draft = _load(given, model, loaded, device or device_of(model)) if isinstance(given, str) else given
    theirs, ours = text_config(draft).vocab_size, text_config(model).vocab_size
    padded = theirs % _PADDED_TO == 0 and ours % _PADDED_TO == 0 and abs(theirs - ours) <= _MOST_PADDING
    if theirs != ours and not padded:
        raise ValueError(
            f"the draft's vocabulary has {theirs} ids, the target's {ours}: use a draft with the same tokenizer."
        )
    if request.visual:
        kind, wanted = (getattr(item.config, "model_type", "") for item in (draft, model))
        # a mixture of experts reads what the dense models of its family read
        alike = kind.removesuffix("_moe") == wanted.removesuffix("_moe")
        if not alike or visual_token_ids(draft) != visual_token_ids(model):
            raise ValueError(
                f"the draft is a {kind} model, the target {wanted}, and they read videos differently: use a draft of "
                "the target's family."
            )
        widths = [text_config(item).hidden_size for item in (draft, model)]
        if "mm_encoder_outputs" in request.visual and widths[0] != widths[1]:
            raise ValueError(
                f"mm_encoder_outputs holds features of width {widths[1]}, the draft model's width is {widths[0]}: pass "
                "the processor's tensors instead (pixel_values, pixel_values_videos and their grids)."
            )
    context = context_length(draft)
    if context is not None and request.positions - 1 > context:  # the last new token is not read
        raise ValueError(
            f"prompt and new tokens need {request.positions - 1} positions, the draft model has {context}: lower "
            "max_new_tokens or use a draft with a longer context."
        )
    return draft


def _load(path: str, model: nn.Module, loaded: dict[str, nn.Module], device: torch.device) -> nn.Module:
    dtype = precision_of(model)
    key = f"{path} {device} {dtype}"
    if key not in loaded:
        check_place("draft_model", path)
        loader = AutoModelForImageTextToText if visual_token_ids(model) else AutoModelForCausalLM
        try:
            draft = load_model(path, dtype, loader)
        except ValueError as error:
            raise ValueError(
                f"draft_model {path!r} cannot be loaded ({error}): give the path or hub id of a model."
            ) from None
        loaded[key] = draft.eval().to(device)
    return loaded[key]


def to_vocabulary(logits: Tensor, size: int) -> Tensor:
    """A draft model's logits in the width of the target's vocabulary.

    Ids that the target lacks are cut off, so that they are never proposed; ids that the draft lacks get the logit minus
    infinity. A softmax of the result is normalized over what both know.

    Args:
        logits: ``[..., vocabulary of the draft]``.
        size: Number of ids of the target.
    """
    missing = size - logits.shape[-1]
    if missing <= 0:
        return logits[..., :size]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)


def known_tokens(draft: nn.Module, tokens: Sequence[int]) -> Sequence[int]:
    """Token ids for a draft model to read: id 0 in place of those beyond its vocabulary, which are padding."""
    size = text_config(draft).vocab_size
    return tokens if max(tokens, default=0) < size else [token if token < size else 0 for token in tokens]
