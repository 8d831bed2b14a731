"""Runs a model with some attention and MLP sub-layers skipped, and reads the output of a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from saccade.inference.huggingface.model_lock import ModelLock
from saccade.inference.huggingface.models import language_part, text_config

# What transformers' models call these parts of a layer.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "conv", "linear_attn", "mamba")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
# Layers of these parts alone have one norm before each sub-layer, whose output nothing else reads.
_NORMS = ("input_layernorm", "post_attention_layernorm")
_PLAIN = {"self_attn", "mlp", *_NORMS}


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model; :func:`sublayers` gives the attention and the MLP of each.

    Args:
        model: A Hugging Face causal language model; PEFT wrappers are looked through.

    Raises:
        ValueError: The model has no list of layers that have both, or several.
    """
    found = [
        child
        for child in language_part(model).modules()
        if isinstance(child, nn.ModuleList) and len(child) > 0 and all(None not in _names(layer) for layer in child)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of decoder layers with an attention "
            f"({', '.join(_ATTENTION)}) and an MLP ({', '.join(_MLP)}), 1 is needed to skip sub-layers: use another "
            "decoder."
        )
    return list(found[0])


def sublayers(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The attention and the MLP of a decoder layer."""
    attention, mlp = _names(layer)
    return layer.get_submodule(str(attention)), layer.get_submodule(str(mlp))


def _names(layer: nn.Module) -> tuple[str | None, str | None]:
    parts = {name for name, part in layer.named_children() if not isinstance(part, nn.ModuleList)}
    attention, mlp = ([name for name in known if name in parts] for known in (_ATTENTION, _MLP))
    return (attention[0] if len(attention) == 1 else None), (mlp[0] if len(mlp) == 1 else None)


class SublayerSkip:
    """Lets a model run with some sub-layers skipped, without touching its weights.

    A skipped sub-layer adds nothing to the residual stream (Draft & Verify, arXiv 2309.08168): it returns zeros, which
    norms behind it and factors on it leave as they are. In layers shaped as Llama's, its own norm is not computed
    either. The model is changed inside ``active()`` only, which is entered for single forwards: between them it is as
    the user left it, and several skip sets can take turns on it, also in several threads.

    Args:
        model: A causal language model whose layers have an attention and an MLP.
        attention: Indices of the layers whose attention is skipped.
        mlp: Indices of the layers whose MLP is skipped.

    Raises:
        ValueError: An index outside the model's layers, or a model of another form.
    """

    def __init__(self, model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> None:
        self.layers = decoder_layers(model)
        self._lock = ModelLock(model)
        self._name = type(model).__name__
        settings = text_config(model) if hasattr(model, "config") else None
        self._shared = getattr(settings, "num_kv_shared_layers", None) or 0
        self.fill(attention, mlp)

    def fill(self, attention: Collection[int], mlp: Collection[int]) -> None:
        """Sets the sub-layers. A skip may be made without any, handed to a session, and filled before its first use.

        Args:
            attention: Indices of the layers whose attention is skipped.
            mlp: Indices of the layers whose MLP is skipped.

        Raises:
            ValueError: An index outside the model's layers.
        """
        for name, indices in (("attention", attention), ("mlp", mlp)):
            wrong = sorted(index for index in set(indices) if not 0 <= index < len(self.layers))
            if wrong:
                raise ValueError(
                    f"skip.{name} names layer {wrong[0]}, but the model's layers are 0 to {len(self.layers) - 1}: "
                    "search a skip set for this model."
                )
        if self._shared and attention:
            raise ValueError(
                f"skip.attention must be empty for {self._name}, whose last {self._shared} layers read keys and values "
                f"of others, got {sorted(attention)}: give skip.mlp alone."
            )
        self.attention, self.mlp = frozenset(attention), frozenset(mlp)
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        for index in sorted(self.attention | self.mlp):
            layer = self.layers[index]
            plain = {name for name, _ in layer.named_children()} == _PLAIN
            chosen = (index in self.attention, index in self.mlp)
            norms = (layer.get_submodule(name) if plain else None for name in _NORMS)
            for skipped, part, norm in zip(chosen, sublayers(layer), norms, strict=True):
                if skipped:
                    self._forwards.append((part, _Nothing(part)))
                    if norm is not None:
                        self._forwards.append((norm, _same))

    @contextmanager
    def active(self) -> Iterator[SublayerSkip]:
        """Within this context the chosen sub-layers are skipped; restored on the way out, also after an exception."""
        changed: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        with self._lock.held():
            try:
                for part, forward in self._forwards:
                    changed.append((part, vars(part).get("forward")))  # that of a hook of accelerate, or of a patch
                    if isinstance(forward, _Nothing):
                        forward.real = part.forward
                    vars(part)["forward"] = forward
                yield self
            finally:
                for part, before in reversed(changed):
                    if before is None:
                        del vars(part)["forward"]
                    else:
                        vars(part)["forward"] = before


class _Nothing:
    """The forward of a skipped sub-layer: zeros in the form of its output."""

    forms: ClassVar[dict[type[nn.Module], int]] = {}  # outputs beside the states, -1 for states alone

    def __init__(self, part: nn.Module) -> None:
        self.kind = type(part)
        self.real: Callable[..., Any] = part.forward

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.kind not in self.forms:  # one call for each class tells
            # what it writes into the cache lies behind the lengths, and verification writes it again
            made = self.real(*given, **named)
            self.forms[self.kind] = len(made) - 1 if isinstance(made, tuple) else -1
        zeros = torch.zeros_like(given[0] if given else named["hidden_states"])
        others = self.forms[self.kind]
        return zeros if others < 0 else (zeros, *[None] * others)


def _same(states: Tensor) -> Tensor:
    return states


def skip_sets(skip: SublayerSkip | None) -> tuple[frozenset[int], frozenset[int]]:
    """The layers whose attention and whose MLP are skipped; empty without a skip."""
    return (frozenset(), frozenset()) if skip is None else (skip.attention, skip.mlp)


@contextmanager
def layer_output(model: nn.Module, layer: int | str | None) -> Iterator[list[Tensor]]:
    """Within this context the output ``[batch, tokens, hidden]`` of a decoder layer is put into the yielded list.

    Args:
        model: A model whose decoder layers are known.
        layer: Its index, negative from the end, or ``"norm"`` for the final norm; ``None`` for none.
    """
    if layer is None:
        yield []
        return
    layers = decoder_layers(model)
    part = language_part(model)
    part = part.get_submodule("model") if part is model else part
    watched = part.get_submodule("norm") if isinstance(layer, str) else layers[layer]
    taken: list[Tensor] = []
    with ModelLock(watched).held():
        handle = watched.register_forward_hook(
            lambda module, given, made: taken.append(made[0] if isinstance(made, tuple) else made)
        )
        try:
            yield taken
        finally:
            handle.remove()


@contextmanager
def skipped_sublayers(model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> Iterator[None]:
    """Runs the model with the given sub-layers skipped for the length of the context."""
    with SublayerSkip(model, attention, mlp).active():
        yield
