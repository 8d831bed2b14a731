"""DecodingEvaluation: evaluate decoders during Lightning's validation, on any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import GenerationConfig

from saccade.callbacks.decoding import report as decoding_report
from saccade.callbacks.decoding.conversations import Conversations, UnfitPrompts
from saccade.callbacks.decoding.measured import (
    BASELINE,
    check_compressors,
    compressed_pairs,
    measured_decoders,
    references,
)
from saccade.callbacks.decoding.prompts import Prompt, PromptCollector, joined_visual
from saccade.callbacks.decoding.quality import agreement
from saccade.callbacks.decoding.tables import show
from saccade.callbacks.decoding.totals import DecodingTotals, differing_tokens, repetition_counts
from saccade.callbacks.isolation import undisturbed
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_count
from saccade.common.distributed import gather_integers, reduce_max, shards_parameters
from saccade.common.progress import Bar, progress_bar
from saccade.inference import CacheCompressor, Decoder, GenerationOutput, Sampling
from saccade.inference.huggingface.generation_config import unsupported_settings
from saccade.inference.request import Request
from saccade.inference.verification.near_ties import first_difference

# decoders are compared greedily, or as `sampling` says: penalties and sampling of the model's own configuration are
# left out, its EOS ids are kept
_PLAIN = GenerationConfig()


class DecodingEvaluation(PromptCollector):
    """Evaluate decoders on prompts from the validation data, in addition to the validation loss.

    Up to ``max_prompts`` rows of the validation data, a fixed pseudo-random choice, are decoded by the autoregressive
    baseline and by every decoder. Each rank decodes rows that its sampler gave it. Totals do not depend on the number
    of ranks: equal rows count once, and decoders that can carry state from call to call (``carry``) start without it at
    every prompt. (The exception is ``target_forwards`` with a ``batch_size`` above 1: a forward for several rows counts
    once.)

    Results are logged as ``decoding/<name>/<statistic>``, so that a checkpoint or early stopping can monitor them;
    written to ``decoding.json`` and ``decoding.png`` in the run folder; and printed as a table. The training is not
    changed: the modes of the model's parts and all random states are restored. The sanity check before ``fit`` decodes
    nothing, but refuses limits that exceed the model's context.

    If the datamodule can score an answer (``VideoCaptions`` with its embedded scenes), the rows also contain the share
    of correct facts, and that share relative to the baseline's.

    Prompts of ``Prompts`` have categories, and there is a row for each decoder and category, and for each decoder one
    of all prompts. Where right answers are known, the rows contain exact match, numeric match, F1 of words and ROUGE-L.
    Later turns of a conversation are asked after the answers of the first decoder, the baseline, so that all decoders
    read the same prompts.

    With compressors, every decoder, the baseline included, is measured on the full cache and on the cache that each
    compressor leaves, as ``<decoder>+<compressor>``. Speed-ups are relative to the baseline on the full cache. Texts
    are compared with those of autoregressive decoding on the same compressed cache; how many of their tokens are those
    of the full cache is a measure of quality, ``tokens_as_full``.

    Speeds are those of one device: tokens of all ranks divided by the decoding seconds of all ranks.

    Args:
        decoders: Decoders by the name of their row. Names may contain letters, digits and ``_ . + -``.
        prompt_length: Tokens taken from the start of each validation row. Batches that contain the position at which an
            answer begins, as those of ``VideoCaptions`` do, give whole prompts with their videos instead.
        max_new_tokens: Largest number of tokens generated for each prompt.
        max_prompts: Largest number of prompts in one validation, over all ranks; conversations count once. ``None`` for
            all.
        sampling: How to draw tokens; ``None`` is greedy. Draws follow from ``seed`` (0 if it is not set) and from the
            index of the prompt, which takes the place of ``rows``.
        baseline: Also decode autoregressively; speed-ups and agreement are relative to this.
        every_n_validations: During ``fit``, run in every n-th validation; ``validate`` always runs.
        batch_size: Number of prompts decoded together.
        transformers: Also measure transformers' own ``generate``, as the row ``transformers``.
        repeats: Number of timed passes over all prompts. With more than one, decoders take turns prompt by prompt, so
            that a change in the speed of the machine affects all of them alike, and speed-ups come with their range.
            Counts are those of all passes together. All decoders then stay in memory until the last one is done.
        compressors: Compressors of the key-value cache by the second part of their rows' names; ``None`` for none.

    Raises:
        ValueError: A setting is outside its range, a name cannot be logged, a decoder cannot be combined with a
            compressor, a batch has no prompts, or a decoder failed.
    """

    def __init__(
        self,
        decoders: dict[str, Decoder],
        prompt_length: int = 64,
        max_new_tokens: int = 64,
        max_prompts: int | None = 32,
        sampling: Sampling | None = None,
        baseline: bool = True,
        every_n_validations: int = 1,
        batch_size: int = 1,
        transformers: bool = False,
        repeats: int = 1,
        compressors: dict[str, CacheCompressor] | None = None,
    ) -> None:
        super().__init__(prompt_length, max_prompts)
        for name, value in (
            ("prompt_length", prompt_length),
            ("max_new_tokens", max_new_tokens),
            ("max_prompts", 1 if max_prompts is None else max_prompts),
            ("every_n_validations", every_n_validations),
            ("batch_size", batch_size),
            ("repeats", repeats),
        ):
            check_count(name, value)
        self.decoders = measured_decoders(decoders, baseline, transformers)
        pairs = compressed_pairs(self.decoders, compressors or {})
        self.pairs = {f"{name}+{kind}": (name, kind) for name, kind in pairs}
        """By the name of a row, its decoder and its compressor, for those of ``compressors``."""
        self.decoders |= {f"{name}+{kind}": decoder for (name, kind), decoder in pairs.items()}
        self.references = references(self.decoders, baseline, sampling)
        """By the name of a row, the one whose text a lossless decoder writes."""
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.baseline = baseline
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.repeats = repeats
        self.rows: list[dict[str, Any]] = []
        """The rows of the latest ``decoding.json``, the same on every rank."""
        self._unfit = UnfitPrompts()
        self._validations = 0
        self._told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second DecodingEvaluation, which would overwrite the results of the first, and missing paths."""
        super().setup(trainer, pl_module, stage)
        others = [item for item in trainer.callbacks if isinstance(item, DecodingEvaluation)]  # type: ignore[attr-defined]
        if len(others) > 1:
            named = " and ".join(", ".join(name for name in item.decoders if name != BASELINE) for item in others)
            raise ValueError(
                f"trainer.callbacks must contain one DecodingEvaluation, got {len(others)} ({named}): name all decoders"
                " in one, as decoding/demo.yaml does."
            )
        for name, decoder in self.decoders.items():
            try:
                decoder.check()  # before the training, not in its first validation
            except ValueError as error:
                raise ValueError(f"decoders.{name}.{error}") from error
        if stage not in ("fit", "validate"):
            rank_zero_warn(f"DecodingEvaluation decodes in fit and validate; in {stage} it does nothing.")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode, log and report."""
        if trainer.sanity_checking:
            self._check_limits(pl_module)
            return
        self._validations += 1
        if trainer.state.fn == "fit" and self._validations % self.every_n_validations:
            return
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{type(pl_module).__name__} has no attribute model to decode with: keep the Hugging Face causal"
                " language model there, as saccade.modules.LanguageModel does."
            )
        self._say_what_is_left_out(model)
        check_compressors(self.decoders, model)
        share, selected = self._pool.share(pl_module.device)
        self._pool.clear()
        conversations = self._conversations(trainer, model)
        unfit = self._unfit.told(conversations, pl_module.device)
        if selected == 0:
            rank_zero_warn("DecodingEvaluation: the validation data contains no prompt, so nothing was decoded.")
            return
        lengths = torch.tensor([max((prompt.length for prompt in share), default=0)], dtype=torch.float64)
        longest = int(reduce_max(lengths, pl_module.device)[0])
        folder = run_folder(trainer)  # before decoding: an error if the folder cannot be written to
        synced = shards_parameters(trainer) and trainer.world_size > 1
        datamodule = getattr(trainer, "datamodule", None)
        evaluation = _Evaluation(self, model, share, pl_module.device, synced, datamodule)
        with undisturbed(pl_module), progress_bar(evaluation.calls, "decoding", trainer) as bar:
            totals = evaluation.evaluate(bar)
        self.rows = decoding_report.rows(
            self.decoders,
            totals,
            baseline=BASELINE if self.baseline else None,
            references=self.references,
            pairs=self.pairs,
            context={
                "prompts": selected,
                **unfit,
                "prompt_length": longest,
                "max_new_tokens": self.max_new_tokens,
                "batch_size": self.batch_size,
                "repeats": self.repeats,
                "sampling": None if self.sampling is None else vars(self.sampling),
                "greedy": self.sampling is None,
                "ranks": trainer.world_size,
                "strategy": type(trainer.strategy).__name__,
                "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
                "stage": trainer.state.fn.value if trainer.state.fn is not None else None,
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
            },
            differing={name: conversations.names(items) for name, items in evaluation.differing.items()},
        )
        for row in (row for row in self.rows if row["category"] is None):
            for statistic, value in decoding_report.logged(row).items():
                # already equal on every rank: no synchronisation is needed
                pl_module.log(f"decoding/{row['name']}/{statistic}", value, rank_zero_only=False, sync_dist=False)
        if trainer.is_global_zero:
            decoding_report.write(self.rows, folder)
            show(self.rows, trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to collect prompts."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._unfit.clear()

    def fitted(self, prompt: Prompt, trainer: Trainer, pl_module: LightningModule) -> Prompt | None:
        """Make a prompt fit the model's context, as the datamodule says."""
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):  # said when the validation ends
            return prompt
        return self._unfit.fitted(prompt, self._conversations(trainer, model))

    def _conversations(self, trainer: Trainer, model: nn.Module) -> Conversations:
        return Conversations(getattr(trainer, "datamodule", None), model, self.max_new_tokens)

    def _say_what_is_left_out(self, model: nn.Module) -> None:
        """Name the settings of the model's generation configuration that change texts and are not evaluated, once."""
        left_out = unsupported_settings(getattr(model, "generation_config", None), drawn=False)
        if left_out and not self._told:
            named = ", ".join(f"{name}={value!r}" for name, (value, _) in left_out.items())
            rank_zero_warn(f"DecodingEvaluation decodes without {named} of the model's generation config.")
        self._told = True

    def _check_limits(self, pl_module: LightningModule) -> None:
        """Refuse limits that exceed the model's context, before the training instead of in its first validation."""
        model = getattr(pl_module, "model", None)
        if isinstance(model, nn.Module) and (own := self._pool.own()):
            longest = max(own, key=lambda prompt: prompt.length)
            ids, visual = longest.tokens[None].to(pl_module.device), joined_visual([longest], pl_module.device)
            try:
                Request.read(
                    model,
                    ids,
                    None,
                    self.max_new_tokens,
                    None,
                    None,
                    None,
                    visual,
                    do_sample=False,
                    generation_config=_PLAIN,
                )
            except ValueError as error:
                raise ValueError(f"DecodingEvaluation: {error}") from error
            for name, decoder in self.decoders.items():
                try:
                    decoder.check(model)
                except ValueError as error:
                    raise ValueError(f"decoders.{name}: {error}") from error


class _Evaluation:
    """One evaluation of all decoders on the prompts of this rank; every rank runs the same decoders in the same order.

    Prompts are decoded in steps: one group of prompts, at one turn of their conversations. Decoders that are measured
    side by side take turns in every step.
    """

    def __init__(
        self,
        settings: DecodingEvaluation,
        model: nn.Module,
        share: list[Prompt],
        device: torch.device,
        synced: bool,
        datamodule: Any = None,
    ) -> None:
        self.conversations = Conversations(datamodule, model, settings.max_new_tokens)
        self.datamodule = datamodule if hasattr(datamodule, "score") and hasattr(datamodule, "tokenizer") else None
        self.settings, self.model, self.device, self.synced = settings, model, device, synced
        self.groups = self._grouped(share)
        self.steps = [(group, turn) for group in self.groups for turn in range(self.conversations.turns(group[0]))]
        # if the weights are sharded, a rank with fewer prompts joins the forwards of the others
        self.rounds = int(reduce_max(torch.tensor([len(self.steps)], dtype=torch.float64), device)[0])
        self.texts: dict[tuple[str, int, int], list[int]] = {}
        """By the name of a row that others are compared with, prompt and turn, its tokens in its first pass."""
        self._history: dict[int, list[list[int]]] = defaultdict(list)
        """By prompt, the answers that stay in its conversation."""
        self._turns_read: dict[tuple[int, int], Prompt | None] = {}
        self.differing: dict[str, list[int]] = {}
        """By decoder, the conversations whose texts are not those of the baseline, over all ranks."""

    @property
    def calls(self) -> int:
        """Number of ``generate`` calls of this rank, those before the timed ones included."""
        return len(self.settings.decoders) * (len(self.steps) * self.settings.repeats + 1)

    def _grouped(self, share: list[Prompt]) -> list[list[Prompt]]:
        """Prompts that are decoded together: of one category, with as many turns and the same kinds of tensors."""
        alike: dict[Any, list[Prompt]] = defaultdict(list)
        for prompt in share:
            kinds = tuple((name, tuple(value.shape[1:])) for name, value in sorted(prompt.visual.items()))
            alike[self.conversations.category(prompt), self.conversations.turns(prompt), kinds].append(prompt)
        size = self.settings.batch_size
        return [same[start : start + size] for same in alike.values() for start in range(0, len(same), size)]

    def evaluate(self, bar: Bar) -> dict[str, dict[str | None, DecodingTotals]]:
        """Run all decoders.

        Returns:
            By decoder and category, the totals over all ranks; under ``None`` those of all prompts.

        Raises:
            ValueError: A decoder failed, here or on another rank.
        """
        decoders = self.settings.decoders
        lots = [list(decoders)] if self.settings.repeats > 1 else [[name] for name in decoders]
        return {name: totals for lot in lots for name, totals in self._measured(lot, bar).items()}

    def _measured(self, lot: list[str], bar: Bar) -> dict[str, dict[str | None, DecodingTotals]]:
        """Run decoders side by side and free them."""
        kinds: list[str | None] = [*self.conversations.categories] or [None]
        totals = {
            name: {kind: DecodingTotals(self.settings.max_new_tokens, self.settings.repeats) for kind in kinds}
            for name in lot
        }
        self._different: dict[str, set[int]] = {name: set() for name in lot}
        failed: tuple[str, Exception] | None = None
        name = lot[0]
        try:
            for step in range(-1, self.rounds):
                for name, repeat in _in_turn(lot, 1 if step < 0 else self.settings.repeats):
                    bar.describe(f"decoding: {name}")
                    self._step(name, step, repeat, totals[name], bar)
        except Exception as error:  # of any kind: the other ranks must learn of it before they wait
            failed = name, error
        finally:
            for each in lot:
                # graphs and buffers would stay allocated while the training goes on
                self.settings.decoders[each].release()
        marks = torch.tensor([float(failed is not None and failed[0] == each) for each in lot], dtype=torch.float64)
        elsewhere = reduce_max(marks, self.device).tolist()
        if failed is not None:
            name, cause = failed
            reason = " ".join(str(cause).split()) or type(cause).__name__
            kind = type(self.settings.decoders[name]).__name__
            raise ValueError(f"decoders.{name} ({kind}) failed: {reason}") from cause
        for name, mark in zip(lot, elsewhere, strict=True):
            if mark:
                kind = type(self.settings.decoders[name]).__name__
                raise ValueError(f"decoders.{name} ({kind}) failed on another rank: see its message.")
        found: dict[str, dict[str | None, DecodingTotals]] = {}
        for name in lot:
            parts = {kind: total.reduced(self.device) for kind, total in totals[name].items()}
            whole = DecodingTotals(self.settings.max_new_tokens, self.settings.repeats)
            for part in parts.values():
                whole = whole + part
            found[name] = {None: whole}
            found[name] |= {category: part for category, part in parts.items() if part.stats.requests}
            most = reduce_max(torch.tensor([len(self._different[name])], dtype=torch.float64), self.device)
            items, _ = gather_integers(sorted(self._different[name]), int(most[0]), self.device)
            self.differing[name] = sorted({item for rank in items for item in rank})
        return found

    def _step(self, name: str, step: int, repeat: int, totals: dict[str | None, DecodingTotals], bar: Bar) -> None:
        """Decode one group of prompts at one turn; step -1 is not counted."""
        decoder = self.settings.decoders[name]
        if step < 0:
            self._check_unseen(decoder, [prompt for group in self.groups for prompt in group])
            # it includes allocations and the compilation of kernels; the longest prompt needs most
            if self.groups:
                group = max(self.groups, key=lambda group: max(prompt.length for prompt in group))
                if decoder.compressor is not None and not self.synced:
                    # the prompt that asks for the largest budget: where it is too small, this is said first
                    shortest = min((prompt for group in self.groups for prompt in group), key=lambda each: each.length)
                    self._generate(decoder, [shortest])
                self._generate(decoder, group)
                bar.advance()
            elif self.synced:
                decoder.join(self.model)
            return
        group, turn = self.steps[step] if step < len(self.steps) else ([], 0)
        prompts = group if turn == 0 else self._later(group, turn)
        total = totals[self.conversations.category(group[0])] if group else None
        if turn:
            self._check_unseen(decoder, prompts)
        if total is not None and repeat == 0:
            total.count(turns_left_out=len(group) - len(prompts))
        if prompts and total is not None:
            out = self._generate(decoder, prompts)
            total.add(out.stats, out.per_request, repeat)
            self._compare(name, decoder, prompts, out.tokens, total)
        elif self.synced:
            decoder.join(self.model)
        if group:
            bar.advance()

    def _check_unseen(self, decoder: Decoder, prompts: Sequence[Prompt]) -> None:
        """Refuse a decoder that knows the answers beforehand."""
        known = [answer for prompt in prompts for answer in self.conversations.known(prompt)]
        decoder.check_unseen([prompt.tokens.tolist() for prompt in prompts], known, self.conversations.tokenizer)

    def _later(self, group: list[Prompt], turn: int) -> list[Prompt]:
        """A later turn of conversations, without those where this or an earlier turn has no room in the context."""
        found = []
        for prompt in group:
            place, answers = (prompt.index, turn), self._history[prompt.index][:turn]
            if place not in self._turns_read:
                self._turns_read[place] = (
                    self.conversations.next_turn(prompt, answers) if len(answers) == turn else None
                )
            if (later := self._turns_read[place]) is not None:
                found.append(later)
        return found

    def _generate(self, decoder: Decoder, group: Sequence[Prompt]) -> GenerationOutput:
        visual: Any = joined_visual(group, self.device)
        return decoder.generate(
            self.model,
            [prompt.tokens.tolist() for prompt in group],
            max_new_tokens=self.settings.max_new_tokens,
            sampling=self._sampling(group),
            do_sample=False,
            generation_config=_PLAIN,
            synced=self.synced,
            **visual,
        )

    def _sampling(self, group: Sequence[Prompt]) -> Sampling | None:
        """How some prompts are sampled: by their index, so that draws do not depend on batches and ranks."""
        sampling = self.settings.sampling
        if sampling is None:
            return None
        return replace(sampling, seed=sampling.seed or 0, rows=[prompt.index for prompt in group])

    def _compare(
        self, name: str, decoder: Decoder, prompts: Sequence[Prompt], outputs: list[list[int]], total: DecodingTotals
    ) -> None:
        """Count how the texts of a step agree with the baseline's, with real text and with known answers."""
        reference = self.settings.references.get(name)
        for prompt, tokens in zip(prompts, outputs, strict=True):
            if len(self._history[prompt.index]) == prompt.turn:  # the first decoder, in its first pass
                self._history[prompt.index].append(tokens)
            if name == reference:
                self.texts.setdefault((name, prompt.index, prompt.turn), tokens)
            total.count(**repetition_counts(tokens, prompt.text.tolist(), prompt.length), **self._facts(tokens, prompt))
            if answers := self.conversations.answers(prompt):
                total.count(**agreement(self.conversations.text(tokens), answers))
            full = self.texts.get((BASELINE, prompt.index, prompt.turn))
            if decoder.compressor is not None and full is not None:
                longer = max(len(full), len(tokens))
                total.count(full_tokens=longer, full_tokens_equal=longer - differing_tokens(tokens, full))
            if reference is None:
                continue
            wanted = self.texts[reference, prompt.index, prompt.turn]
            differing = differing_tokens(tokens, wanted)
            total.count(identical_rows=int(differing == 0), differing_tokens=differing)
            if differing:
                self._different[name].add(max(prompt.item, 0))
            if differing and decoder.lossless and not self.synced:
                tie = first_difference(
                    self.model,
                    prompt.tokens.tolist(),
                    tokens,
                    wanted,
                    visual=joined_visual([prompt], self.device),
                    sampling=self._sampling([prompt]),
                    row=prompt.index,
                    compressor=decoder.compressor,
                )
                total.count_near_tie(tie)

    def _facts(self, tokens: Sequence[int], prompt: Prompt) -> dict[str, int]:
        """Count the correct and the asked facts of an answer, if the datamodule knows them."""
        if self.datamodule is None or prompt.item < 0:
            return {}
        score = self.datamodule.score(self.conversations.text(tokens), prompt.item, "validation")
        return {} if score is None else {"facts_right": score.right, "facts_asked": score.asked}


def _in_turn(lot: list[str], repeats: int) -> Iterator[tuple[str, int]]:
    """The order in which decoders decode a step; in every pass another one is first."""
    for repeat in range(repeats):
        start = repeat % len(lot)
        for name in lot[start:] + lot[:start]:
            yield name, repeat
