"""Whether LVSpec's visual relevance is higher for words about the video, and in which layer most clearly.

    python -m benchmarks.video.relevance --target RUN/model --videos 100 --frames 32

The target captions held-out clips greedily. Every token of a caption has a visual relevance in every layer, computed as
:class:`saccade.inference.LVSpec` does it with ``layer`` and ``score_at``. The figure is the AUC: the probability that a
content word (noun, adjective, verb; facts are among them) has a higher relevance than a function word of the same
caption; a tie counts half, and 0.5 is chance. Two more AUCs compare words that tell a fact of the scene with function
words and with all other tokens. Intervals (95 %) resample videos. Tokens of different captions are not compared: they
are never judged in the same round. Most content words of these captions can be written without seeing the video,
so facts have figures of their own.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.rows import interval, model_place, positive, replace, row
from benchmarks.video.prompts import Batch, HeldOut, allow, default_config, load, ratio_interval
from saccade.datamodules.video import lexicon as lexicon
from saccade.inference import Autoregressive
from saccade.inference.huggingface.models import language_part, text_config
from saccade.inference.huggingface.sublayer_skip import layer_output
from saccade.inference.huggingface.vision import visual_inputs
from saccade.inference.huggingface.visual_prompts import VisualPrompt, read_visual_prompts
from saccade.inference.verification.relaxed import visual_relevance

SEED = 0


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION = _words(
    """
    a an the this that these those each any all no some other
    and or but if as so than because while
    of in on to at by for from with without into onto over along across behind besides beside during toward towards
    between under about
    it its itself they them their themselves we us our you your he she who whoever which what there here
    anybody everything nothing something nobody
    is are was were be been being am has have had having do does did can could will would may might must shall should
    not
    """
)
_OTHER = _words(
    """
    first second third fourth last next then after before afterwards finally therefore
    just only very also too still again ever never far more most else enough quite bit
    altogether together carefully smoothly slowly perfectly clearly slightly
    """
)
"""Adverbs and words of order: neither function words nor nouns, adjectives or verbs."""
_CARRIERS = _words("backdrop background surface digit digits numeral numerals edge corner total just only")
"""Words in the wordings of facts that do not depend on the fact."""
_WORD = re.compile(r"[^\W_]+")
COMPARISONS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "content": (frozenset({"fact", "content"}), frozenset({"function"})),
    "facts": (frozenset({"fact"}), frozenset({"function"})),
    "facts_over_rest": (frozenset({"fact"}), frozenset({"content", "function", "other"})),
}
"""Classes whose tokens should be higher, and those of the tokens that they are compared with."""
StateKey = tuple[int | str, str]
"""A layer and a value of ``score_at``: which states a relevance is computed from."""


def _facts() -> re.Pattern[str]:
    groups = (lexicon.SIZES, lexicon.COLOURS, lexicon.DIRECTIONS, lexicon.BACKGROUNDS, lexicon.COUNTS)
    phrases = {phrase for group in groups for wordings in group.values() for phrase in wordings}
    phrases |= {*lexicon.DIGITS, *(str(label) for label in range(len(lexicon.DIGITS)))}
    # longer ones first, because "from right to left" is one fact
    longest = sorted(phrases, key=len, reverse=True)
    return re.compile(r"(?<![\w-])(?:" + "|".join(re.escape(phrase) for phrase in longest) + r")(?![\w-])")


_FACTS = _facts()


def classes(pieces: Sequence[str]) -> list[str]:
    """The kind of word that each token of a caption belongs to.

    Args:
        pieces: The text of every token; that of special tokens is empty.

    Returns:
        ``fact`` (of a scene: digit, size, colour, direction, background, count), ``content``, ``function``, ``other``
        (adverbs, words of order, punctuation) or, for special tokens, an empty string.
    """
    text = "".join(pieces).lower()
    about = [match.span() for match in _FACTS.finditer(text)]
    kinds = ["other"] * len(text)
    for match in _WORD.finditer(text):
        word, (start, end) = match[0], match.span()
        told = any(first <= start and end <= stop for first, stop in about)
        if word in FUNCTION:
            kind = "function"
        elif told and word not in _CARRIERS:
            kind = "fact"
        else:
            kind = "other" if word in _OTHER else "content"
        kinds[start:end] = [kind] * (end - start)
    found, at = [], 0
    for piece in pieces:
        own = kinds[at : at + len(piece)]
        at += len(piece)
        # spaces and signs around a word do not change what the token is
        found.append(next((kind for kind in own if kind != "other"), "other") if own else "")
    return found


def wins(above: np.ndarray, below: np.ndarray) -> float:
    """The number of pairs in which the first value is the larger one; a tie counts half.

    Args:
        above: Scores of the tokens that should have the higher ones.
        below: Scores of the tokens that each of them is compared with.
    """
    order = np.sort(below)
    lower, upto = (np.searchsorted(order, above, side) for side in ("left", "right"))
    return float((lower + upto).sum()) / 2


@torch.no_grad()
def relevances(model: PreTrainedModel, read: VisualPrompt, start: int, neighbours: int) -> dict[StateKey, np.ndarray]:
    """Visual relevance of every token of a text but the first, which LVSpec always takes from the target.

    Args:
        model: The target.
        read: The prompt followed by the text.
        start: Place of the text's first token.
        neighbours: Setting of :class:`saccade.inference.LVSpec`.

    Returns:
        Scores for each layer, ``norm`` included, and each of ``score_at``.
    """
    found: dict[StateKey, np.ndarray] = {}
    layers: list[int | str] = [*range(text_config(model).num_hidden_layers), "norm"]
    with ExitStack() as stack:
        noted = {layer: stack.enter_context(layer_output(model, layer)) for layer in layers}
        positions = read.positions[:, None] if len(read.positions) > 1 else read.positions
        language_part(model)(inputs_embeds=read.embeddings[None], position_ids=positions, use_cache=False)
    for layer, taken in noted.items():
        states = taken[0][0]
        scores = visual_relevance(states[start:], states[read.visual], neighbours).cpu().numpy()
        judge, own = scores[:-1], scores[1:]  # a state's logits decide the next token
        found |= {(layer, "judge"): judge, (layer, "draft"): own, (layer, "max"): np.maximum(judge, own)}
    return found


class Study:
    """A target, its captions and its rows.

    Args:
        target: The target.
        data: Where the prompts are from.
        new: Most new tokens of a caption.
        size: Prompts of a batch.
        neighbours: Video tokens whose cosines are averaged.
        case: Target and data in words; the number of video tokens is added.
    """

    def __init__(self, target: PreTrainedModel, data: HeldOut, new: int, size: int, neighbours: int, case: str) -> None:
        self.target, self.data, self.new, self.neighbours = target, data, new, neighbours
        self.batches = data.prepare(target, size)
        self.case = case.format(tokens=data.video_tokens)
        allow(target, max(batch.inputs["input_ids"].shape[1] for batch in self.batches) + new)
        self.decoder = Autoregressive()
        self.texts: list[list[int]] = []
        self.kinds: list[list[str]] = []
        self.scores: list[dict[StateKey, np.ndarray]] = []

    def captions(self, batch: Batch) -> list[list[int]]:
        """The target's captions of a batch."""
        return self.decoder.generate(self.target, max_new_tokens=self.new, **batch.inputs).tokens

    def captioned(self, batch: Batch) -> Iterator[tuple[list[int], list[int], VisualPrompt]]:
        """Every prompt of a batch, its caption, and both as one prompt for the language part."""
        inputs = dict(batch.inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        prompts = [known[real.bool()].tolist() for known, real in zip(ids, mask, strict=True)]
        texts = self.captions(batch)
        whole = [[*prompt, *text] for prompt, text in zip(prompts, texts, strict=True)]
        read = read_visual_prompts(self.target, whole, visual_inputs(self.target, inputs))
        return zip(prompts, texts, read, strict=True)

    def measure(self) -> None:
        """Captions all clips and scores every token in every layer."""
        for batch in track(self.batches, "captions"):
            for prompt, text, read in self.captioned(batch):
                self.texts.append(text)
                self.kinds.append(classes([self.data.text([token]) for token in text])[1:])
                self.scores.append(relevances(self.target, read, len(prompt), self.neighbours))
        self.decoder.pool.clear()

    def auc(self, key: StateKey, comparison: str) -> tuple[float, float, float] | None:
        """An AUC with its interval; ``None`` where no caption has tokens of both sides.

        Args:
            key: A layer and a value of ``score_at``.
            comparison: A key of ``COMPARISONS``.
        """
        high, low = COMPARISONS[comparison]
        won, pairs = [], []
        for kinds, scores in zip(self.kinds, self.scores, strict=True):
            own = scores[key]
            above, below = (own[[kind in side for kind in kinds]] for side in (high, low))
            won.append(wins(above, below))
            pairs.append(float(len(above) * len(below)))
        return ratio_interval(won, pairs, SEED) if any(pairs) else None

    def rows(self) -> list[dict[str, Any]]:
        """A row for every layer and value of ``score_at``.

        Raises:
            SystemExit: No caption has words of both kinds.
        """
        marks = [self.data.score(item, text) for item, text in enumerate(self.texts)]
        common = {
            "tokens": dict(Counter(kind for kinds in self.kinds for kind in kinds if kind)),
            "neighbours": self.neighbours,
            "slot_accuracy": sum(mark.right for mark in marks) / max(1, sum(mark.asked for mark in marks)),
            **self.data.variety(self.texts),
            "videos": len(self.texts),
            "video_tokens": self.data.video_tokens,
        }
        made = []
        for layer, place in self.scores[0]:
            found = {name: self.auc((layer, place), name) for name in COMPARISONS}
            content = found["content"]
            if content is None:
                raise SystemExit(
                    "No caption of --target has both content and function words: train the target first, or raise"
                    " --new-tokens."
                )
            extra: dict[str, Any] = {"layer": layer, "score_at": place}
            for name, values in found.items():
                extra |= {name: values and values[0], f"{name}_interval": values and values[1:]}
            method = f"{layer if isinstance(layer, str) else f'layer {layer}'}, {place}"
            made.append(
                row(
                    "video_relevance", self.case, method, "auc", [content[0]], "probability", seed=SEED,
                    extra=extra | common,
                )
            )  # fmt: skip
        return made


def main() -> None:
    """Measures, prints a table and one line of JSON, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=model_place, required=True, help="folder of the target, with its tokenizer")
    parser.add_argument("--config", nargs="+", help="YAML files of the data; default: the one of the target's run")
    parser.add_argument("--videos", type=positive, default=100)
    parser.add_argument("--frames", type=positive, help="frames of a clip; default: the configuration's")
    parser.add_argument("--size", type=positive, help="height and width in pixels; default: the configuration's")
    parser.add_argument("--batch", type=positive, default=25, help="videos that are captioned together")
    parser.add_argument("--new-tokens", type=positive, default=192)
    parser.add_argument("--neighbours", type=positive, default=10, help="video tokens whose cosines are averaged")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    dtype = torch.bfloat16 if torch.device(chosen.device).type == "cuda" else torch.float32
    target = load(chosen.target, dtype, chosen.device)
    data = HeldOut(
        chosen.config or default_config(chosen.target), chosen.target, chosen.videos, chosen.frames, chosen.size
    )
    case = (
        f"{target.config.model_type}, {chosen.videos} held-out videos of {{tokens}} tokens, own greedy captions of up "
        f"to {chosen.new_tokens} tokens, {chosen.neighbours} neighbours"
    )
    study = Study(target, data, chosen.new_tokens, chosen.batch, chosen.neighbours, case)
    study.measure()
    made = study.rows()
    replace(made)
    report(made, study.case)


def report(made: Sequence[dict[str, Any]], case: str) -> None:
    """Prints the table, and as one line of JSON the AUCs of content words and the best state for each AUC."""
    table = Table(title=f"{case}; AUC (95 %)")
    columns = ("state", "content over function words", "facts over function words", "facts over all other tokens")
    for column in columns:
        table.add_column(column)
    for item in made:
        table.add_row(item["method"], *(interval(item, name) for name in COMPARISONS))
    Console(width=150).print(table)
    best = {name: max(made, key=lambda item: item[name] or 0.0)["method"] for name in COMPARISONS}
    brief = {item["method"]: round(item["value"], 3) for item in made}
    Console(soft_wrap=True, highlight=False).print(json.dumps({"case": case, "best": best, **brief}), markup=False)


if __name__ == "__main__":
    main()
