"""Runs a model with some attention and MLP sub-layers skipped, and reads the output of a layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from saccade.inference.huggingface.model_lock import ModelLock
from saccade.inference.huggingface.models import language_part


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a model, each with the sub-layers ``self_attn`` and ``mlp``.

    Args:
        model: A Hugging Face causal language model; PEFT wrappers are looked through.

    Raises:
        ValueError: When the layers are not of the pre-norm form (norm, attention, norm, MLP) that sub-layer skipping
            knows.
    """
    found = [
        child
        for child in language_part(model).modules()
        if isinstance(child, nn.ModuleList)
        and len(child) > 0
        and all(hasattr(layer, "self_attn") and hasattr(layer, "mlp") for layer in child)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of decoder layers with self_attn and mlp, 1 is needed: "
            "sub-layer skipping knows Llama-, Qwen2- and Qwen3-shaped models."
        )
    layers = list(found[0])
    for index, layer in enumerate(layers):
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise ValueError(
                f"layer {index} of {type(model).__name__} has the parts {', '.join(sorted(names))}: sub-layer skipping "
                "knows layers of input_layernorm, self_attn, post_attention_layernorm and mlp."
            )
    return layers


class SublayerSkip:
    """Lets a model run with some sub-layers skipped, without touching its weights.

    A skipped sub-layer is the identity on the residual stream and its norm is not computed (Draft & Verify,
    arXiv 2309.08168). The model is changed inside ``active()`` only, which is entered for single forwards: between
    them it is as the user left it, and several skip sets can take turns on it, also in several threads.

    Args:
        model: A Llama-, Qwen2- or Qwen3-shaped causal language model.
        attention: Indices of the layers whose attention is skipped.
        mlp: Indices of the layers whose MLP is skipped.

    Raises:
        ValueError: An index outside the model's layers, or a model of another form.
    """

    def __init__(self, model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> None:
        self.layers = decoder_layers(model)
        self._lock = ModelLock(model)
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
        self.attention, self.mlp = frozenset(attention), frozenset(mlp)
        self._forwards = {
            index: self._forward(self.layers[index], index not in self.attention, index not in self.mlp)
            for index in sorted(self.attention | self.mlp)
        }

    @contextmanager
    def active(self) -> Iterator[SublayerSkip]:
        """Within this context the chosen sub-layers are skipped; restored on the way out, also after an exception.

        Raises:
            ValueError: A layer's forward is patched already.
        """
        changed: list[Any] = []
        with self._lock.held():
            try:
                for index, forward in self._forwards.items():
                    layer: Any = self.layers[index]
                    if "forward" in vars(layer):
                        raise ValueError(
                            f"the forward of layer {index} has been replaced, so its sub-layers cannot be skipped: "
                            "remove what replaced it (a hook of accelerate, a patch), or use another decoder."
                        )
                    layer.forward = forward
                    changed.append(layer)
                yield self
            finally:
                for layer in changed:
                    del layer.forward

    def _forward(self, layer: Any, keep_attention: bool, keep_mlp: bool) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if keep_attention:
                normed = layer.input_layernorm(hidden_states)
                hidden_states = hidden_states + layer.self_attn(normed, *args, **kwargs)[0]
            if keep_mlp:
                hidden_states = hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))
            return hidden_states

        return forward


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
        handle = watched.register_forward_hook(lambda module, given, made: taken.append(made))
        try:
            yield taken
        finally:
            handle.remove()


@contextmanager
def skipped_sublayers(model: nn.Module, attention: Collection[int], mlp: Collection[int]) -> Iterator[None]:
    """Runs the model with the given sub-layers skipped for the length of the context."""
    with SublayerSkip(model, attention, mlp).active():
        yield
