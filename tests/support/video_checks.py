"""What video decoders are checked against: a vision-language model's own code, read from scratch for every text."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from saccade.inference import Decoder, Session, TokenTree
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.huggingface.models import language_part
from saccade.inference.reduction.selector import VideoSelector, VideoView
from saccade.inference.reduction.selectors import make_selector
from saccade.inference.request import Request
from saccade.inference.state import GenerationState
from saccade.inference.verification.draft import Draft, Verdict
from saccade.inference.verification.verifier import Verifier
from tests.support.video_models import VIDEO, VideoPrompts, tiny_video_model

WITHIN = 1e-6  # transformers' norms round to float32


@cache
def video_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A target of three layers that add little each, so that drafts on less video or fewer layers often agree."""
    model = tiny_video_model(family, layers=3, seed=seed)
    part: Any = language_part(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in part.layers:
            layer.self_attn.o_proj.weight *= 0.5
            layer.mlp.down_proj.weight *= 0.5
        # new norms weigh all channels alike, which no cosine sees
        part.norm.weight *= 0.5 + torch.rand(part.norm.weight.shape, generator=draw)
    return model


@cache
def video_draft_model(family: str, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """The target's first layers, with its vision tower, embedding, norm and head."""
    model = video_model(family, seed)
    config = copy.deepcopy(model.config)
    config.text_config.num_hidden_layers = layers
    config.text_config.layer_types = ["full_attention"] * layers
    draft: PreTrainedModel = type(model)(config).to(model.dtype).eval()
    left = draft.load_state_dict(model.state_dict(), strict=False)
    assert not left.missing_keys
    return draft


def asked(prompts: VideoPrompts) -> dict[str, Tensor]:
    """The keyword arguments of a decoder."""
    return {"input_ids": prompts.input_ids, "attention_mask": prompts.attention_mask, **prompts.visual}


def asked_of_transformers(prompts: VideoPrompts) -> dict[str, Tensor]:
    """The keyword arguments of ``model.generate`` and of a model's own forward."""
    kinds = {"mm_token_type_ids": prompts.kinds} if "video_grid_thw" in prompts.visual else {}
    return asked(prompts) | kinds


def padded_on_the_right(prompts: VideoPrompts) -> VideoPrompts:
    """The same prompts with their padding behind them."""
    order = (1 - prompts.attention_mask).argsort(dim=-1, stable=True)
    ids, mask = (item.gather(1, order) for item in (prompts.input_ids, prompts.attention_mask))
    return VideoPrompts(ids, mask, prompts.visual)


def stock_tokens(
    model: PreTrainedModel, prompts: VideoPrompts, family: str, new: int, eos: Sequence[int] = ()
) -> list[list[int]]:
    """What ``model.generate`` writes for every row alone, without any code of ours."""
    rows = []
    for index in range(len(prompts.input_ids)):
        row = prompts.row(index, family)
        out = model.generate(
            **asked_of_transformers(row), max_new_tokens=new, do_sample=False, eos_token_id=list(eos) or None
        )
        rows.append(out[0, row.input_ids.shape[1] :].tolist())
    return rows


class Stock:
    """A model's own code on one prompt, whole or with some video tokens taken out, and on what follows it.

    Embeddings and positions are those that the model's own forward hands to its language part.

    Args:
        model: A vision-language model.
        prompt: One row.
        keep: Which of its video tokens stay; ``None`` for all.
        compact: Whether positions are counted anew.
    """

    def __init__(
        self, model: PreTrainedModel, prompt: VideoPrompts, keep: Sequence[int] | None = None, compact: bool = False
    ) -> None:
        self.model = copy.deepcopy(model)
        self.part: Any = language_part(self.model)
        given: dict[str, Any] = {}
        hook = self.part.register_forward_pre_hook(lambda _, args, named: given.update(named), with_kwargs=True)
        with torch.no_grad():
            self.model(**asked_of_transformers(prompt))
        hook.remove()
        embeddings, length = given["inputs_embeds"], prompt.input_ids.shape[1]
        positions = given.get("position_ids")
        if positions is None or positions.ndim == 2:
            positions = torch.arange(length)[None, None]
        positions = positions[-3:]
        # text goes on behind the last token, which is not the largest position where a video is long and small
        self.next = int(positions[..., -1].max()) + 1
        video = (prompt.input_ids[0] == VIDEO).nonzero()[:, 0].tolist()
        gone = set() if keep is None else set(video) - {video[index] for index in keep}
        self.places = [place for place in range(length) if place not in gone]
        self.visual = [index for index, place in enumerate(self.places) if place in video]
        self.embeddings, self.positions = embeddings[:, self.places], positions[..., self.places]
        stay = list(range(len(video))) if keep is None else list(keep)
        self.deep = [features[stay] for features in given.get("deepstack_visual_embeds") or []]
        if compact:
            self.positions = torch.arange(len(self.places)).expand(self.positions.shape)
            self.next = len(self.places)

    def read(self, new: Sequence[int]) -> tuple[Tensor, DynamicCache]:
        """Logits ``[length, vocabulary]`` of the prompt and new tokens in one forward, and its cache."""
        logits, held, _ = self.observe(new)
        return logits, held

    def observe(self, new: Sequence[int], layer: int | str = -1) -> tuple[Tensor, DynamicCache, Tensor]:
        """Likewise, with ``[length, hidden]`` of a layer's output, or of the final norm's."""
        added = self.part.get_input_embeddings()(torch.tensor([list(new)], dtype=torch.long))
        steps = torch.arange(len(new)) + self.next
        positions = torch.cat([self.positions, steps.expand(len(self.positions), 1, -1)], -1)
        embeddings = torch.cat([self.embeddings, added], 1)
        added_to = torch.zeros(embeddings.shape[:2], dtype=torch.bool)
        added_to[0, self.visual] = True
        deep = {"visual_pos_masks": added_to, "deepstack_visual_embeds": self.deep} if self.deep else {}
        held, seen = DynamicCache(), []
        watched = self.part.norm if layer == "norm" else self.part.layers[layer]
        hook = watched.register_forward_hook(lambda module, args, out: seen.append(out))
        with torch.no_grad():
            hidden = self.part(
                inputs_embeds=embeddings,
                # without it transformers takes positions that jump for several texts in one
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
                position_ids=positions if len(positions) > 1 else positions[0],
                past_key_values=held,
                use_cache=True,
                **deep,
            ).last_hidden_state
            logits = self.model.lm_head(hidden)[0]
        hook.remove()
        return logits, held, seen[0][0]


class Noting(VideoSelector):
    """Remembers what another selector chose for every row."""

    def __init__(self, inner: VideoSelector) -> None:
        self.inner = inner
        self.kept: dict[int, list[int]] = {}
        needs = ("needs_scores", "needs_grid", "needs_features")
        vars(self).update({name: getattr(inner, name) for name in needs})

    def select(self, view: VideoView) -> Tensor:
        keep = self.inner.select(view)
        self.kept[view.row] = keep.tolist()
        return keep


class Keeping(VideoSelector):
    """Keeps a share of the tokens that a seed chooses for every row: any set may come."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def select(self, view: VideoView) -> Tensor:
        draw = torch.Generator().manual_seed(100 * self.seed + view.row)
        share = torch.rand((), generator=draw)
        return (torch.rand(view.tokens, generator=draw) < share).nonzero()[:, 0]


class VideoAudit:
    """Compares both caches of a video decoder, and optionally its trees' logits, with readings from scratch.

    Args:
        decoder: A SpecVLM or LVSpec; it is changed.
        model: The target.
        prompts: What it will be asked.
        family: Of the models.
        trees: Whether every node of every tree is compared too, of the target and of the draft.
    """

    def __init__(
        self, decoder: Any, model: PreTrainedModel, prompts: VideoPrompts, family: str, trees: bool = False
    ) -> None:
        self.model, self.trees = model, trees
        self.draft_model = decoder.draft_model or model
        self.rows = [prompts.row(index, family) for index in range(len(prompts.input_ids))]
        self.texts = [row.input_ids[0].tolist() for row in self.rows]
        self.targets = [Stock(model, row) for row in self.rows]
        self.drafts: dict[int, Stock] = {}
        self.compact = decoder.positions == "compact"
        self.selector = decoder.selector = Noting(make_selector(decoder.selector, decoder.prune_ratio))
        self.rounds = self.catch_ups = self.rejections = self.nodes = self.draft_nodes = 0
        drafter, verifier = decoder.drafter, decoder.verifier

        def audited(_: Decoder, target: nn.Module, request: Request) -> Drafter:
            return self._watched(drafter(target, request))

        def judging(_: Decoder, target: nn.Module, request: Request) -> Verifier:
            made = verifier(target, request)
            verify = made.verify

            def judged(logits: Tensor, draft: Draft, state: GenerationState) -> list[Verdict]:
                if self.trees and draft.tokens.shape[1]:
                    self._check_target_tree(logits, draft, state)
                verdicts: list[Verdict] = verify(logits, draft, state)
                return verdicts

            made.verify = judged  # type: ignore[method-assign]
            return made

        decoder.drafter, decoder.verifier = MethodType(audited, decoder), MethodType(judging, decoder)

    def _watched(self, made: Any) -> Drafter:
        draft_session, observe = made.draft_session, made.observe
        catch_up = draft_session.catch_up

        def observed(state: GenerationState, draft: Draft, verdicts: Sequence[Verdict]) -> None:
            self._check_target(state)
            self.rejections += sum(len(v.path) - 1 < n for v, n in zip(verdicts, draft.counts, strict=True))
            observe(state, draft, verdicts)

        def caught_up(state: GenerationState) -> Tensor:
            first = not self.catch_ups
            logits: Tensor = catch_up(state)
            self._check_draft(state, draft_session.session, logits)
            if first and self.trees:
                self._watch_trees(draft_session.session)
            self._state = state
            return logits

        made.observe, draft_session.catch_up = observed, caught_up
        drafter: Drafter = made
        return drafter

    def _row(self, text: list[int]) -> tuple[int, list[int]]:
        """Which prompt a text continues, and by what."""
        fits = [index for index, prompt in enumerate(self.texts) if text[: len(prompt)] == prompt]
        row = max(fits, key=lambda index: len(self.texts[index]))
        return row, text[len(self.texts[row]) :]

    def _draft(self, row: int) -> Stock:
        if row not in self.drafts:
            keep = self.selector.kept[row]
            self.drafts[row] = Stock(self.draft_model, self.rows[row], keep, self.compact)
        return self.drafts[row]

    def _check_target(self, state: GenerationState) -> None:
        assert state.session.lengths == [len(text) - 1 for text in state.texts]
        last = state.session.token_column([text[-1] for text in state.texts])
        logits = state.session.forward(last)[:, -1]  # behind the committed slots, and not committed
        for place, text in enumerate(state.texts):
            row, new = self._row(text)
            right, held = self.targets[row].read(new)
            assert (logits[place] - right[-1]).abs().max() < WITHIN
            _same_cache(state.session, place, held, len(text) - 1)
        self.rounds += 1

    def _check_draft(self, state: GenerationState, session: Session, logits: Tensor) -> None:
        for place, text in enumerate(state.texts):
            row, new = self._row(text)
            stock = self._draft(row)
            right, held = stock.read(new)
            assert session.lengths[place] == len(stock.places) + len(new)
            assert (logits[place] - right[-1]).abs().max() < WITHIN
            _same_cache(session, place, held, session.lengths[place])
        self.catch_ups += 1

    def _check_target_tree(self, logits: Tensor, draft: Draft, state: GenerationState) -> None:
        for place, text in enumerate(state.texts):
            row, new = self._row(text)
            tokens = [text[-1], *draft.tokens[place].tolist()]
            self.nodes += _same_tree(self.targets[row], new[:-1], tokens, draft.shape(), logits[place])

    def _watch_trees(self, session: Session) -> None:
        forward = session.forward

        def watched(tokens: Tensor, tree: TokenTree | None = None, *, skipped: bool = False) -> Tensor:
            logits = forward(tokens, tree, skipped=skipped)
            if tree is not None:
                for place, text in enumerate(self._state.texts):
                    row, new = self._row(text)
                    nodes = tokens[place].tolist()
                    self.draft_nodes += _same_tree(self._draft(row), new[:-1], nodes, tree, logits[place])
            return logits

        session.forward = watched  # type: ignore[method-assign]


def _same_cache(session: Session, place: int, right: DynamicCache, length: int) -> None:
    for layer, states in enumerate(right.layers):
        for buffer, fresh in ((session.storage.keys, states.keys), (session.storage.values, states.values)):
            held = buffer[layer]
            assert held is not None
            assert (held[place, :, :length] - fresh[0, :, :length]).abs().max() < WITHIN


def _same_tree(stock: Stock, before: list[int], tokens: list[int], tree: TokenTree, logits: Tensor) -> int:
    """Compares the logits of every node with those of its path, read alone; tokens may be more than the tree holds."""
    for path in tree.paths:
        right, _ = stock.read([*before, *(tokens[node] for node in path)])
        assert (logits[list(path)] - right[-len(path) :]).abs().max() < WITHIN
    return len(tree)
