"""The recurrent layers of transformers' models, and how they work on the states of a session."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from saccade.inference.huggingface.model_lock import ModelLock
from saccade.inference.recurrent.kernels import KERNELS, Kernel
from saccade.inference.recurrent.states import RecurrentStates

# Methods of transformers' caches with which a layer stores its inputs and its states, and its function on the inputs.
_INPUTS, _STATES, _CONVOLUTION = "update_conv_state", "update_recurrent_state", "causal_conv1d_fn"


@dataclass(frozen=True)
class Mixer:
    """A part of a layer that remembers something of the text.

    Args:
        part: The module.
        layer: The index of its layer.
        kernel: The recurrence of its state; ``None`` if it has none that is known.
        known: Whether everything that it remembers is known: inputs of a short convolution, and the state.
    """

    part: nn.Module
    layer: int
    kernel: Kernel | None
    known: bool


def recurrent_mixers(model: nn.Module) -> list[Mixer]:
    """The parts of a model that store inputs of convolutions or states in transformers' cache."""
    found = []
    for part in model.modules():
        kind: Any = type(part)
        if (recurrence := _recurrence(kind)) is not None:
            kernel, known = recurrence
            layer = getattr(part, "layer_idx", None)
            found.append(Mixer(part, -1 if layer is None else layer, kernel, known and layer is not None))
    return found


def why_not_followed(model: nn.Module, layers: Iterable[int], in_place: bool) -> str:
    """Why a session cannot roll back the states of a model's recurrent layers, and what to do; empty if it can.

    The text is the end of a sentence that names the layers.

    Args:
        model: The model.
        layers: Indices of its recurrent layers.
        in_place: Whether its weights lie where they are used, and are not moved there for each forward.
    """
    mixers = recurrent_mixers(model)
    if not all(mixer.known for mixer in mixers) or not set(layers) <= {mixer.layer for mixer in mixers}:
        return (
            ", whose state is kept in a form that a session cannot roll back after a rejected draft: decode it with "
            "model.generate"
        )
    stateful = [mixer.part for mixer in mixers if mixer.kernel is not None]
    if stateful and not in_place:
        return (
            " and weights that are moved to the device for every forward, with which a session cannot follow their "
            "state: keep the model on its device"
        )
    if not any(_replaced(part) for part in stateful):
        return ""
    with ModelLock(model).held():  # another thread may be inside a forward, where decoders replace some for its length
        if not any(_replaced(part) for part in stateful):
            return ""
    return ", whose forward has been replaced, so that a session cannot follow their state: load the model as it is"


def called_names(function: Any) -> frozenset[str]:
    """The names that the code of a function looks up, below its decorators."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return frozenset(getattr(code, "co_names", ()))


class RecurrentForwards:
    """Lets the recurrent layers of a model work on the states of a session, for single forwards.

    A layer that keeps a state calls a function for the whole sequence, which returns the last state. Within
    :meth:`active` it calls one that begins with the session's state and returns all states: the layer's forward is run
    with another function under that name, and the module of transformers stays as it is.

    Args:
        model: A model whose recurrent layers can be followed.
        states: Where they read and write.
    """

    def __init__(self, model: nn.Module, states: RecurrentStates) -> None:
        mixers = [mixer for mixer in recurrent_mixers(model) if mixer.kernel is not None]
        self.stateful = bool(mixers)
        """Whether there are states besides the inputs of short convolutions."""
        self._forwards = [(mixer.part, _following(mixer, states)) for mixer in mixers]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context the layers work on the session's states. Hold the model's lock around it."""
        before = [vars(part).get(_place(part)) for part, _ in self._forwards]
        try:
            for part, forward in self._forwards:
                vars(part)[_place(part)] = forward
            yield
        finally:
            for (part, _), own in zip(self._forwards, before, strict=True):
                if own is None:
                    vars(part).pop(_place(part), None)
                else:
                    vars(part)[_place(part)] = own


def _place(part: nn.Module) -> str:
    """The attribute whose function is run: a hook of accelerate, as of a model on several devices, calls another."""
    return "_old_forward" if hasattr(part, "_hf_hook") else "forward"


def _replaced(part: nn.Module) -> bool:
    own = vars(part).get(_place(part))
    return own is not None and getattr(own, "__func__", None) is not type(part).forward


@cache
def _recurrence(kind: Any) -> tuple[Kernel | None, bool] | None:
    """The recurrence of a class, and whether it is known; ``None`` for a class that remembers nothing."""
    methods = [method for base in kind.__mro__ if base is not nn.Module for method in vars(base).values()]
    if not any({_INPUTS, _STATES} & called_names(method) for method in methods):
        return None
    names = called_names(kind.forward)
    if not {_INPUTS, _CONVOLUTION} <= names:
        return None, False
    if _STATES not in names:
        return None, True
    fitting = [item for item in KERNELS if {item.scan, item.step} <= names]
    return (fitting[0], True) if len(fitting) == 1 else (None, False)


def _following(mixer: Mixer, states: RecurrentStates) -> Callable[..., Any]:
    """A mixer's own forward, with the function of its recurrence replaced."""
    kernel, layer = mixer.kernel, mixer.layer
    assert kernel is not None  # noqa: S101 -- the caller has chosen those with a recurrence
    forward: Any = inspect.unwrap(type(mixer.part).forward)
    scan, step = forward.__globals__[kernel.scan], forward.__globals__[kernel.step]

    def followed(*given: Any, **named: Any) -> Any:
        if not states.running:
            return scan(*given, **named)
        return kernel.rule(scan, step, states.state(layer), not states.reading, *given, **named)

    changed = forward.__globals__ | {kernel.scan: followed}
    made = FunctionType(forward.__code__, changed, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return MethodType(made, mixer.part)
