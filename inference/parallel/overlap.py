"""Where the draft model runs, so that its work and the target's overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from saccade.inference.huggingface.models import device_of


class Overlap:
    """Puts the work of a draft model beside that of the target.

    On one GPU it is queued on a stream of its own, on two GPUs on the draft's device; one Python thread queues both. On
    a processor one works after the other. Results do not depend on this.

    Args:
        target: The target's device.
        draft: The draft model's device.
    """

    def __init__(self, target: torch.device, draft: torch.device) -> None:
        self._target = target
        self._stream: torch.cuda.Stream | None = None
        if draft.type == "cuda":
            self._stream = torch.cuda.Stream(draft)
            self._stream.wait_stream(torch.cuda.current_stream(draft))  # what has loaded the weights

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Context in which the draft works. It does not wait for what the target has queued, nor the target for it."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Lets what the target queues next wait for what the draft has queued, without waiting on the host."""
        if self._stream is not None and self._target.type == "cuda":
            torch.cuda.current_stream(self._target).wait_stream(self._stream)


def draft_device(devices: str, model: nn.Module, given: nn.Module | str) -> torch.device:
    """The device for a draft model.

    Args:
        devices: ``auto`` or the name of a device.
        model: The target.
        given: The draft model, or its path. A loaded one stays where it is.

    Returns:
        With ``auto`` and a path: a GPU that holds nothing of the target, if this process alone decides about the GPUs
        and there is one with room, else the target's.

    Raises:
        ValueError: There is no such device, or the loaded draft model is on another one.
    """
    if devices != "auto":
        wanted = torch.device(devices)
        if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"devices must be auto or a device that is there, got {devices} with {torch.cuda.device_count()} GPUs: "
                "give the draft model's device."
            )
        if isinstance(given, nn.Module) and device_of(given) != wanted:
            raise ValueError(
                f"devices must be auto or {device_of(given)}, where the loaded draft model is, got {devices}: move the "
                "draft model with .to() first."
            )
        return wanted
    if isinstance(given, nn.Module):
        return device_of(given)
    own = device_of(model)
    if own.type != "cuda" or torch.distributed.is_initialized():
        return own
    used = {weight.device.index for weight in model.parameters() if weight.device.type == "cuda"}
    free = [index for index in range(torch.cuda.device_count()) if index not in used]
    return torch.device("cuda", free[0]) if free else own


def check_devices(devices: object) -> None:
    """Refuses a setting that names no device.

    Args:
        devices: ``auto`` or the name of a device.

    Raises:
        ValueError: It is neither.
    """
    try:
        if devices == "auto" or (isinstance(devices, str) and torch.device(devices)):
            return
    except RuntimeError:
        pass
    raise ValueError(f"devices must be auto or the name of a device, got {devices!r}: give for example cuda:1.")
