"""Copies to host memory on a stream of their own: no result depends on when they happen."""

import random

import pytest
import torch

from saccade.inference.engine.compressed.host_copies import HostCopies


def test_without_a_gpu_everything_is_copied_at_once() -> None:
    copies, source = HostCopies(torch.device("cpu")), torch.randn(3, 4)
    target = copies.empty(source.shape, source.dtype)
    copies.copy(source, target)
    assert torch.equal(target, source)
    assert target.data_ptr() != source.data_ptr()
    copies.finish()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_late_copies_have_what_was_there_when_they_were_asked_for() -> None:
    """Sources are dropped and their memory is written again while the copies wait; what follows sees whole copies."""
    device, delay = torch.device("cuda"), random.Random(0)
    for turn in range(1000):
        copies = HostCopies(device)
        targets = []
        for number in range(4):
            source = torch.full((1 << 14,), float(turn * 4 + number), device=device)
            targets.append(copies.empty(source.shape, source.dtype))
            with torch.cuda.stream(copies._stream):
                torch.cuda._sleep(delay.randrange(0, 20_000))
            copies.copy(source, targets[-1])
            del source
            torch.full((1 << 14,), -1.0, device=device)
        copies.finish()
        read = torch.stack([target.to(device, non_blocking=True) for target in targets])  # behind the copies
        wanted = torch.arange(4, device=device) + turn * 4.0
        assert bool((read == wanted[:, None]).all())
