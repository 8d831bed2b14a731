"""Going back to other weights: with torch's optimizers, and with one that steps on flat copies as DeepSpeed's does."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from saccade.callbacks.trait.weights import clear_state, place_weights


class Small(LightningModule):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


class Flat:
    """What ZeRO does to an optimizer: it steps on a flat float32 copy and writes that over the module's weights."""

    def __init__(self, module, counts_in_groups=False):
        self.module = module
        self.copy = nn.Parameter(parameters_to_vector(module.parameters()).detach().float().clone())
        self.optimizer = torch.optim.AdamW([self.copy], 0.1)
        self.counts_in_groups = counts_in_groups
        if counts_in_groups:
            self.optimizer.param_groups[0]["step"] = 0

    def zero_grad(self):
        self.module.zero_grad()

    def step(self):
        self.copy.grad = parameters_to_vector([weight.grad for weight in self.module.parameters()]).float()
        if self.counts_in_groups:
            self.optimizer.param_groups[0]["step"] += 1
        self.optimizer.step()
        with torch.no_grad():
            vector_to_parameters(self.copy.to(next(self.module.parameters()).dtype), self.module.parameters())

    def refresh_fp32_params(self):
        self.copy.data.copy_(parameters_to_vector(self.module.parameters()))


def train(module, optimizer, steps, seed):
    torch.manual_seed(seed)
    for inputs in torch.randn(steps, 8, 4):
        optimizer.zero_grad()
        module.layers(inputs.to(next(module.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def adam(module):
    return torch.optim.AdamW(module.parameters(), 0.1)


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [adam, Flat])
def test_a_child_is_the_same_whatever_was_trained_before(make, dtype):
    parent = Small().to(dtype)
    state = copied(parent)
    train(parent, make(parent), 3, seed=1)
    wanted = copied(parent)
    module = Small(seed=5).to(dtype)
    optimizer = make(module)
    train(module, optimizer, 4, seed=2)
    place_weights(module, state, [optimizer])
    for name, value in state.items():
        assert torch.equal(module.state_dict()[name], value)
    train(module, optimizer, 3, seed=1)
    for name, value in wanted.items():
        assert torch.equal(module.state_dict()[name], value), name


def test_counts_of_fused_optimizers_are_forgotten_and_settings_are_not():
    module = Small()
    optimizer = Flat(module, counts_in_groups=True)
    train(module, optimizer, 3, seed=0)
    assert optimizer.optimizer.state
    clear_state([optimizer])
    assert not optimizer.optimizer.state
    assert optimizer.optimizer.param_groups[0]["step"] == 0
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.1
