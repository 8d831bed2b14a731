"""Draft models that are named by a path: loaded once, in the target's precision and on its device, and checked."""

from __future__ import annotations

from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from saccade.common.checks import check_place
from saccade.inference.huggingface.models import device_of, precision_of, text_config
from saccade.inference.huggingface.vision import visual_token_ids
from saccade.inference.request import Request


def draft_for(given: nn.Module | str, model: nn.Module, request: Request, loaded: dict[str, nn.Module]) -> nn.Module:
    """The draft model for a target.

    Args:
        given: A loaded model, or the path or hub id of one.
        model: The target.
        request: What shall be generated.
        loaded: Where the decoder keeps what was loaded.

    Raises:
        ValueError: It cannot be loaded, has another vocabulary, is of another family where videos are read, or its
            context is too short.
    """
    draft = _load(given, model, loaded) if isinstance(given, str) else given
    theirs, ours = text_config(draft).vocab_size, text_config(model).vocab_size
    if theirs != ours:
        raise ValueError(
            f"the draft's vocabulary has {theirs} ids, the target's {ours}: use a draft with the same tokenizer."
        )
    if request.visual:
        kind, wanted = (getattr(item.config, "model_type", "") for item in (draft, model))
        if kind != wanted or visual_token_ids(draft) != visual_token_ids(model):
            raise ValueError(
                f"the draft is a {kind} model, the target {wanted}, and they read videos differently: use a draft of "
                "the target's family."
            )
    context = getattr(text_config(draft), "max_position_embeddings", None)
    needed = request.positions
    if context is not None and needed > context:
        raise ValueError(
            f"prompt and new tokens need {needed} positions, the draft model has {context}: lower max_new_tokens or "
            "use a draft with a longer context."
        )
    return draft


def _load(path: str, model: nn.Module, loaded: dict[str, nn.Module]) -> nn.Module:
    device, dtype = device_of(model), precision_of(model)
    key = f"{path} {device} {dtype}"
    if key not in loaded:
        check_place("draft_model", path)
        loader = AutoModelForImageTextToText if visual_token_ids(model) else AutoModelForCausalLM
        try:
            draft: nn.Module = loader.from_pretrained(path, dtype=dtype)
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"draft_model {path!r} cannot be loaded: {reason}") from None
        loaded[key] = draft.eval().to(device)
    return loaded[key]
