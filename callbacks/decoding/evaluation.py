"""Decoders measured inside Lightning's validation, on any number of ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from saccade.callbacks.decoding import report as decoding_report
from saccade.callbacks.decoding.prompts import Prompt, PromptCollector, joined_visual
from saccade.callbacks.decoding.totals import DecodingTotals, differing_tokens, repetition_counts
from saccade.callbacks.isolation import undisturbed
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_count, check_place
from saccade.common.distributed import reduce_max, shards_parameters
from saccade.common.progress import Bar, progress_bar
from saccade.inference import Autoregressive, Decoder, GenerationOutput, Sampling, Session
from saccade.inference.huggingface.visual_prompts import read_visual_prompts
from saccade.inference.request import Request

BASELINE = "autoregressive"
"""Name of the row that the others are compared with."""

# below this gap between the target's two best logits, a forward of another width may round to the other token
_NEAR_TIE = {torch.float64: 0.0, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class DecodingEvaluation(PromptCollector):
    """Runs decoders on the prompts of the validation data, beside validation's own loss.

    Up to ``max_prompts`` rows of the validation data, a fixed pseudo-random choice, are decoded by the autoregressive
    baseline and by every decoder, each rank taking those its sampler gave it. Totals do not depend on the number of
    ranks: equal rows count once, and decoders that can carry state from call to call (``carry``) begin every prompt
    afresh. (With ``batch_size`` above 1, ``target_forwards`` does: it counts a forward that serves several rows once.)
    Logged as ``decoding/<name>/<statistic>``, so that a checkpoint or early stopping can watch them; written to
    ``decoding.json`` and ``decoding.png`` in the run folder, and printed as a table. Training is not disturbed: the
    model's modes and all random states are restored. The sanity check before ``fit`` decodes nothing, but refuses
    limits that the model has no room for.

    Where the datamodule can score an answer (``VideoCaptions`` on its own world), rows also say which share of the
    facts is right, and which share of the baseline's is kept.

    Speeds are those of one device: tokens of all ranks over the decoding seconds of all ranks.

    Args:
        decoders: Decoders by the name of their row. Names may hold letters, digits and ``_ . + -``.
        prompt_length: Tokens taken from the start of each validation row. Batches that say where an answer begins, as
            those of ``VideoCaptions`` do, give whole prompts with their videos.
        max_new_tokens: Most tokens generated for each prompt.
        max_prompts: Most prompts in one validation, over all ranks.
        sampling: How to draw tokens; ``None`` is greedy. Every prompt gets a seed of its own, ``seed`` (0 if there is
            none) plus its index.
        baseline: Also decode autoregressively, which speed-ups and agreement are measured against.
        every_n_validations: During ``fit``, run in every n-th validation; ``validate`` always runs.
        batch_size: Prompts decoded together.

    Raises:
        ValueError: A setting outside its range, a name that cannot be logged, or a batch without prompts. A decoder
            that fails is named in one line.
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
                raise ValueError(f"decoder name {name!r} cannot be logged: use letters, digits and _ . + - only.")
            if not isinstance(decoder, Decoder):
                raise ValueError(f"decoder {name!r} must be a saccade.inference.Decoder, got {type(decoder).__name__}.")
        if baseline and not isinstance(decoders.get(BASELINE, Autoregressive()), Autoregressive):
            raise ValueError(f"the name {BASELINE!r} is the baseline's: give that decoder another, or baseline=false.")
        if not decoders and not baseline:
            raise ValueError("decoders is empty and baseline is false: nothing would be decoded.")
        first = {BASELINE: Autoregressive()} if baseline else {}
        self.decoders: dict[str, Decoder] = first | {name: _independent(item) for name, item in decoders.items()}
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling
        self.baseline = baseline
        self.every_n_validations = every_n_validations
        self.batch_size = batch_size
        self.rows: list[dict[str, Any]] = []
        """Rows of the latest ``decoding.json``, the same on every rank."""
        self._validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a second one, whose results would replace those of the first."""
        super().setup(trainer, pl_module, stage)
        others = [item for item in trainer.callbacks if isinstance(item, DecodingEvaluation)]  # type: ignore[attr-defined]
        if len(others) > 1:
            named = " and ".join(", ".join(name for name in item.decoders if name != BASELINE) for item in others)
            raise ValueError(
                f"callbacks: there are {len(others)} DecodingEvaluations ({named}), and each writes decoding.json; name"
                " all decoders in one, as decoding/demo.yaml does"
            )
        for name, decoder in self.decoders.items():
            for setting in ("draft_model", "skip"):  # now, and not after the training up to the first validation
                if isinstance(place := getattr(decoder, setting, None), str):
                    check_place(f"decoders.{name}.{setting}", place)
        if stage not in ("fit", "validate"):
            rank_zero_warn(f"DecodingEvaluation decodes in fit and validate; in {stage} it does nothing.")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decodes, logs and reports."""
        if trainer.sanity_checking:
            self._check_limits(pl_module)
            return
        self._validations += 1
        if trainer.state.fn == "fit" and self._validations % self.every_n_validations:
            return
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{type(pl_module).__name__} has no .model to decode with: keep the Hugging Face causal language model "
                "there, like saccade.modules.LanguageModel does."
            )
        share, selected = self._pool.share(pl_module.device)
        self._pool.clear()
        if selected == 0:
            rank_zero_warn("DecodingEvaluation: the validation data holds no prompt, nothing was decoded.")
            return
        lengths = torch.tensor([max((prompt.length for prompt in share), default=0)], dtype=torch.float64)
        longest = int(reduce_max(lengths, pl_module.device)[0])
        folder = run_folder(trainer)  # before the work: a folder that cannot be written to is known now
        synced = shards_parameters(trainer) and trainer.world_size > 1
        datamodule = getattr(trainer, "datamodule", None)
        run = _Evaluation(self, model, share, pl_module.device, synced, datamodule)
        steps = len(self.decoders) * (len(run.groups) + 1)
        with undisturbed(pl_module), progress_bar(steps, "decoding", trainer) as bar:
            totals = {name: run.measure(name, decoder, bar) for name, decoder in self.decoders.items()}
        self.rows = decoding_report.rows(
            self.decoders,
            totals,
            baseline=BASELINE if self.baseline else None,
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
                # equal on every rank already: nothing to synchronise
                pl_module.log(f"decoding/{row['name']}/{statistic}", value, rank_zero_only=False, sync_dist=False)
        if trainer.is_global_zero:
            decoding_report.write(self.rows, folder)
            decoding_report.show(self.rows, trainer)

    def _check_limits(self, pl_module: LightningModule) -> None:
        """Refuses limits that the model does not have room for, before the training and not in its first validation."""
        model = getattr(pl_module, "model", None)
        if isinstance(model, nn.Module) and (own := self._pool.own()):
            longest = max(own, key=lambda prompt: prompt.length)
            ids, visual = longest.tokens[None].to(pl_module.device), joined_visual([longest], pl_module.device)
            try:
                Request.read(model, ids, None, self.max_new_tokens, None, None, None, visual, do_sample=False)
            except ValueError as error:
                raise ValueError(f"DecodingEvaluation: {error}") from error


def _independent(decoder: Decoder) -> Decoder:
    """The decoder with calls that leave nothing to the next one: totals must not depend on who decodes what before."""
    if is_dataclass(decoder) and any(item.name == "carry" for item in fields(decoder)):
        return replace(decoder, carry=False)
    return decoder


class _Evaluation:
    """One pass of all decoders over this rank's prompts; every rank runs the same decoders in the same order."""

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
        # a rank that has fewer prompts than another joins its forwards when the weights are sharded
        self.rounds = int(reduce_max(torch.tensor([len(self.groups)], dtype=torch.float64), device)[0])
        self.reference: list[list[list[int]]] | None = None

    def measure(self, name: str, decoder: Decoder, bar: Bar) -> DecodingTotals:
        """Totals of one decoder over all ranks.

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
        except Exception as error:  # whatever it is, the other ranks must hear of it before they wait
            failure = error
        failed = reduce_max(torch.tensor([float(failure is not None)], dtype=torch.float64), self.device)
        if failure is not None:
            reason = " ".join(str(failure).split()) or type(failure).__name__
            raise ValueError(f"decoder {name!r} ({type(decoder).__name__}) failed: {reason}") from failure
        if failed[0]:
            raise ValueError(f"decoder {name!r} ({type(decoder).__name__}) failed on another rank: see its message.")
        return totals.reduced(self.device)

    def _decode(self, decoder: Decoder, totals: DecodingTotals, bar: Bar) -> list[list[list[int]]]:
        outputs: list[list[list[int]]] = []
        # the first call pays for allocations and kernels that are compiled on first use: not counted
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
        longest = max(prompt.length for prompt in group)
        ids = torch.zeros(len(group), longest, dtype=torch.long)
        mask = torch.zeros(len(group), longest, dtype=torch.long)
        for row, prompt in enumerate(group):
            ids[row, : prompt.length], mask[row, : prompt.length] = prompt.tokens, 1
        sampling = self.settings.sampling
        if sampling is not None:  # by the prompt, not by the rank: the draws must not depend on who decodes it
            sampling = replace(sampling, seed=(sampling.seed or 0) + group[0].index)
        visual: Any = joined_visual(group, self.device)
        return decoder.generate(
            self.model,
            ids.to(self.device),
            mask.to(self.device),
            max_new_tokens=self.settings.max_new_tokens,
            sampling=sampling,
            do_sample=False,  # greedy without sampling, whatever the model's generation config says
            synced=self.synced,
            **visual,
        )

    def _compare(self, decoder: Decoder, outputs: list[list[list[int]]], totals: DecodingTotals) -> None:
        for place, group in enumerate(self.groups):
            for row, prompt in enumerate(group):
                tokens = outputs[place][row]
                totals.count(
                    **repetition_counts(tokens, prompt.text.tolist(), prompt.length), **self._facts(tokens, prompt)
                )
                if self.reference is None or self.settings.sampling is not None:
                    continue
                wanted = self.reference[place][row]
                differing = differing_tokens(tokens, wanted)
                totals.count(identical_rows=int(differing == 0), differing_tokens=differing)
                if differing and decoder.lossless and not self.synced:
                    totals.count(near_tie_rows=int(self._near_tie(prompt, tokens, wanted)))

    def _facts(self, tokens: Sequence[int], prompt: Prompt) -> dict[str, int]:
        """Right and asked facts of an answer, where the data knows them."""
        if self.datamodule is None or prompt.item < 0:
            return {}
        text = self.datamodule.tokenizer.decode(tokens, skip_special_tokens=True)
        score = self.datamodule.score(text, prompt.item, "validation")
        return {} if score is None else {"facts_right": score.right, "facts_asked": score.asked}

    def _near_tie(self, prompt: Prompt, tokens: Sequence[int], wanted: Sequence[int]) -> bool:
        """Whether the target itself can hardly tell its two best tokens apart where two rows part."""
        pairs = list(zip(tokens, wanted, strict=False))
        same = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
        if same is None:  # one row is the beginning of the other: no rounding does that
            return False
        text = [*prompt.tokens.tolist(), *wanted[:same]]
        visual = joined_visual([prompt], self.device)
        with Session(self.model, len(text)) as session:
            seen = read_visual_prompts(self.model, [text], visual) if visual else None
            best = session.prefill([text], seen)[0].topk(2).values
        return bool(best[0] - best[1] < _NEAR_TIE.get(best.dtype, 0.0))
