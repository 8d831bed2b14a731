"""DecodingEvaluation: evaluate decoders during Lightning's validation, on any number of ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import GenerationConfig

from saccade.callbacks.decoding import report as decoding_report
from saccade.callbacks.decoding.prompts import Prompt, PromptCollector, joined_visual
from saccade.callbacks.decoding.totals import DecodingTotals, differing_tokens, repetition_counts
from saccade.callbacks.isolation import undisturbed
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_count
from saccade.common.distributed import reduce_max, shards_parameters
from saccade.common.progress import Bar, progress_bar
from saccade.inference import Autoregressive, Decoder, GenerationOutput, Sampling
from saccade.inference.huggingface.generation_config import unsupported_settings
from saccade.inference.request import Request
from saccade.inference.verification.near_ties import first_difference

BASELINE = "autoregressive"
"""Name of the baseline's row, which the others are compared with."""

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

    Speeds are those of one device: tokens of all ranks divided by the decoding seconds of all ranks.

    Args:
        decoders: Decoders by the name of their row. Names may contain letters, digits and ``_ . + -``.
        prompt_length: Tokens taken from the start of each validation row. Batches that contain the position at which an
            answer begins, as those of ``VideoCaptions`` do, give whole prompts with their videos instead.
        max_new_tokens: Largest number of tokens generated for each prompt.
        max_prompts: Largest number of prompts in one validation, over all ranks.
        sampling: How to draw tokens; ``None`` is greedy. Draws follow from ``seed`` (0 if it is not set) and from the
            index of the prompt, which takes the place of ``rows``.
        baseline: Also decode autoregressively; speed-ups and agreement are relative to this.
        every_n_validations: During ``fit``, run in every n-th validation; ``validate`` always runs.
        batch_size: Number of prompts decoded together.

    Raises:
        ValueError: A setting is outside its range, a name cannot be logged, a batch has no prompts, or a decoder
            failed.
    """

    def __init__(
        self,
        decoders: dict[str, Decoder],
        prompt_length: int = 64,
        max_new_tokens: int = 64,
        max_prompts: int = 32,
        sampling: Sampling | None = None,
        baseline: bool = True,
        every_n_validations: int = 1,
        batch_size: int = 1,
    ) -> None:
        super().__init__(prompt_length, max_prompts)
        for name, value in (
            ("prompt_length", prompt_length),
            ("max_new_tokens", max_new_tokens),
            ("max_prompts", max_prompts),
            ("every_n_validations", every_n_validations),
            ("batch_size", batch_size),
        ):
            check_count(name, value)
        for name, decoder in decoders.items():
            if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name):
                raise ValueError(
                    f"decoders must have names that can be logged, got {name!r}: use letters, digits and _.+-."
                )
            if not isinstance(decoder, Decoder):
                raise ValueError(
                    f"decoders.{name} must be a saccade.inference.Decoder, got {type(decoder).__name__}: name one by"
                    " its class_path."
                )
        if baseline and not isinstance(decoders.get(BASELINE, Autoregressive()), Autoregressive):
            raise ValueError(
                f"decoders.{BASELINE} must be Autoregressive, got {type(decoders[BASELINE]).__name__}: choose another"
                " name, or set baseline to false."
            )
        if not decoders and not baseline:
            raise ValueError(
                "decoders must name a decoder if baseline is false, got none: add one, or set baseline to true."
            )
        first = {BASELINE: Autoregressive()} if baseline else {}
        self.decoders: dict[str, Decoder] = first | {name: item.independent() for name, item in decoders.items()}
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.baseline = baseline
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.rows: list[dict[str, Any]] = []
        """The rows of the latest ``decoding.json``, the same on every rank."""
        self._validations = 0
        self._told = False

    @property
    def comparable(self) -> bool:
        """Whether every lossless decoder writes the baseline's text: greedy, or sampled with noise that is shared."""
        return self.sampling is None or self.sampling.coupling == "gumbel"

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
        share, selected = self._pool.share(pl_module.device)
        self._pool.clear()
        if selected == 0:
            rank_zero_warn("DecodingEvaluation: the validation data contains no prompt, so nothing was decoded.")
            return
        lengths = torch.tensor([max((prompt.length for prompt in share), default=0)], dtype=torch.float64)
        longest = int(reduce_max(lengths, pl_module.device)[0])
        folder = run_folder(trainer)  # before decoding: an error if the folder cannot be written to
        synced = shards_parameters(trainer) and trainer.world_size > 1
        datamodule = getattr(trainer, "datamodule", None)
        evaluation = _Evaluation(self, model, share, pl_module.device, synced, datamodule)
        steps = len(self.decoders) * (len(evaluation.groups) + 1)
        with undisturbed(pl_module), progress_bar(steps, "decoding", trainer) as bar:
            totals = {name: evaluation.evaluate(name, decoder, bar) for name, decoder in self.decoders.items()}
        self.rows = decoding_report.rows(
            self.decoders,
            totals,
            baseline=BASELINE if self.baseline else None,
            comparable=self.comparable,
            context={
                "prompts": selected,
                "prompt_length": longest,
                "max_new_tokens": self.max_new_tokens,
                "batch_size": self.batch_size,
                "sampling": None if self.sampling is None else vars(self.sampling),
                "greedy": self.sampling is None,
                "ranks": trainer.world_size,
                "strategy": type(trainer.strategy).__name__,
                "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
                "stage": trainer.state.fn.value if trainer.state.fn is not None else None,
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
            },
        )
        for row in self.rows:
            for statistic, value in decoding_report.logged(row).items():
                # already equal on every rank: no synchronisation is needed
                pl_module.log(f"decoding/{row['name']}/{statistic}", value, rank_zero_only=False, sync_dist=False)
        if trainer.is_global_zero:
            decoding_report.write(self.rows, folder)
            decoding_report.show(self.rows, trainer)

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
    """One pass of all decoders over the prompts of this rank; every rank runs the same decoders in the same order."""

    def __init__(
        self,
        settings: DecodingEvaluation,
        model: nn.Module,
        share: list[Prompt],
        device: torch.device,
        synced: bool,
        datamodule: Any = None,
    ) -> None:
        self.datamodule = datamodule if hasattr(datamodule, "score") and hasattr(datamodule, "tokenizer") else None
        self.settings, self.model, self.device, self.synced = settings, model, device, synced
        size = settings.batch_size
        self.groups = [share[start : start + size] for start in range(0, len(share), size)]
        # if the weights are sharded, a rank with fewer prompts joins the forwards of the others
        self.rounds = int(reduce_max(torch.tensor([len(self.groups)], dtype=torch.float64), device)[0])
        self.reference: list[list[list[int]]] | None = None

    def evaluate(self, name: str, decoder: Decoder, bar: Bar) -> DecodingTotals:
        """Run one decoder and return its totals over all ranks.

        Raises:
            ValueError: The decoder failed, here or on another rank.
        """
        bar.describe(f"decoding: {name}")
        totals, failure = DecodingTotals(self.settings.max_new_tokens), None
        try:
            outputs = self._decode(decoder, totals, bar)
            if self.settings.baseline and name == BASELINE:
                self.reference = outputs
            self._compare(decoder, outputs, totals)
        except Exception as error:  # of any kind: the other ranks must learn of it before they wait
            failure = error
        finally:
            decoder.release()  # graphs and buffers would stay allocated while the training goes on
        failed = reduce_max(torch.tensor([float(failure is not None)], dtype=torch.float64), self.device)
        if failure is not None:
            reason = " ".join(str(failure).split()) or type(failure).__name__
            raise ValueError(f"decoders.{name} ({type(decoder).__name__}) failed: {reason}") from failure
        if failed[0]:
            raise ValueError(f"decoders.{name} ({type(decoder).__name__}) failed on another rank: see its message.")
        return totals.reduced(self.device)

    def _decode(self, decoder: Decoder, totals: DecodingTotals, bar: Bar) -> list[list[list[int]]]:
        outputs: list[list[list[int]]] = []
        # the first call is not counted: it includes allocations and the compilation of kernels
        for step in range(-1, self.rounds):
            if step < len(self.groups) and self.groups:
                out = self._generate(decoder, self.groups[max(step, 0)])
                if step >= 0:
                    totals.add(out.stats, out.per_request)
                    outputs.append(out.tokens)
                bar.advance()
            elif self.synced:
                decoder.join(self.model)
        return outputs

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

    def _compare(self, decoder: Decoder, outputs: list[list[list[int]]], totals: DecodingTotals) -> None:
        for place, group in enumerate(self.groups):
            for row, prompt in enumerate(group):
                tokens = outputs[place][row]
                totals.count(
                    **repetition_counts(tokens, prompt.text.tolist(), prompt.length), **self._facts(tokens, prompt)
                )
                if self.reference is None or not self.settings.comparable:
                    continue
                wanted = self.reference[place][row]
                differing = differing_tokens(tokens, wanted)
                totals.count(identical_rows=int(differing == 0), differing_tokens=differing)
                if differing and decoder.lossless and not self.synced:
                    tie = first_difference(
                        self.model,
                        prompt.tokens.tolist(),
                        tokens,
                        wanted,
                        visual=joined_visual([prompt], self.device),
                        sampling=self._sampling([prompt]),
                        row=prompt.index,
                    )
                    totals.count_near_tie(tie)

    def _facts(self, tokens: Sequence[int], prompt: Prompt) -> dict[str, int]:
        """Count the correct and the asked facts of an answer, if the datamodule knows them."""
        if self.datamodule is None or prompt.item < 0:
            return {}
        text = self.datamodule.tokenizer.decode(tokens, skip_special_tokens=True)
        score = self.datamodule.score(text, prompt.item, "validation")
        return {} if score is None else {"facts_right": score.right, "facts_asked": score.asked}
