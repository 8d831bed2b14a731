"""Search the sub-layers that a self-speculative draft skips: for a model in memory, and as a callback."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from saccade.callbacks.decoding.prompts import PromptCollector
from saccade.callbacks.isolation import undisturbed, where_it_trained
from saccade.callbacks.layer_skip.costs import measure_costs
from saccade.callbacks.layer_skip.proposals import propose
from saccade.callbacks.layer_skip.timing import DecoderTimer
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_choice, check_count
from saccade.common.distributed import shards_parameters
from saccade.common.journal import Journal
from saccade.common.progress import Bar, progress_bar
from saccade.common.provenance import provenance
from saccade.inference import Autoregressive, SelfSpeculative
from saccade.inference.drafting.skip_scores import ForwardCosts, SkipSet, draft_trace, score
from saccade.inference.drafting.skip_sets import model_fingerprint, refuse_other_file, write_skip_file
from saccade.inference.huggingface.sublayer_skip import decoder_layers

LEAST_SPEEDUP = 1.03
"""A gain below this is within the error of the times, for a user as for the decoders' draft control."""


@dataclass(frozen=True)
class LayerSkipResult:
    """Result of a layer search.

    The times are those of the last rounds, in which the chosen set and autoregressive decoding took turns after the
    choice: the best of several noisy times is better than what a decoder then reaches.

    Args:
        skip: The skip set with the shortest wall-clock time for each token among those timed.
        seconds_per_token: Time of ``SelfSpeculative`` with this set for each token after the first, the median of the
            rounds.
        baseline_seconds_per_token: The same of autoregressive decoding.
        speedup: Speed relative to autoregressive decoding, the median over rounds of the ratio within a round.
        lowest_speedup: The lowest of these ratios.
        highest_speedup: The highest.
        match_rate: Share of the full model's tokens that the draft predicts correctly, in one parallel pass.
        trials: Number of skip sets that were estimated.
    """

    skip: SkipSet
    seconds_per_token: float
    baseline_seconds_per_token: float
    speedup: float
    lowest_speedup: float
    highest_speedup: float
    match_rate: float
    trials: int

    @property
    def gains(self) -> bool:
        """Whether decoding with this set is at least 3 % faster than autoregressive decoding."""
        return self.speedup >= LEAST_SPEEDUP

    @property
    def verdict(self) -> str:
        """What the search has found, in one line."""
        measured = f"{self.speedup:.2f}x, {self.lowest_speedup:.2f} to {self.highest_speedup:.2f} in single rounds"
        if self.gains:
            return f"{self.speedup:.2f}x speed-up over autoregressive decoding ({measured.partition(', ')[2]})"
        return (
            f"no set of sub-layers gains on this model (the best one: {measured}): train it with sub-layer dropout, or"
            " use another decoder, for example PromptLookup"
        )


def search_layers(
    model: nn.Module,
    prompts: Sequence[Tensor],
    output: str | Path = "skip_layers.json",
    *,
    log: str | Path | None = None,
    trials: int = 200,
    finalists: int = 10,
    repeats: int = 3,
    rounds: int = 5,
    max_new_tokens: int = 128,
    draft_length: int = 12,
    seed: int = 0,
    costs: ForwardCosts | None = None,
    trainer: Trainer | None = None,
    progress: bool = True,
) -> LayerSkipResult:
    """Search the skip set with the least wall-clock time for each emitted token (arXiv 2309.08168, section 3.2).

    The highest acceptance rate is that of skipping nothing, so time is minimised instead. Each of ``trials`` skip sets
    is first estimated: one parallel pass of the draft over text that the model generated gives the tokens that would
    have been accepted, and the measured costs of sub-layers give the time. Bayesian optimisation proposes the sets. Of
    the sets that could gain if all their drafts were accepted, the ``finalists`` with the best estimates are decoded
    with and timed, and the fastest is written. Its speed-up is then measured anew, in turn with autoregressive
    decoding. Both are done with draft control, as users decode. All times are those of tokens after the first.

    Args:
        model: A Llama-, Qwen2- or Qwen3-shaped causal language model on its device, not sharded.
        prompts: Token ids ``[length]`` of each prompt; lengths may differ. Use held-out text similar to that of later
            use.
        output: The skip file to write, for ``SelfSpeculative(skip=...)``.
        log: The journal of the search, one JSON object in each line; ``None`` is ``layer_search.jsonl`` in the folder
            of ``output``. A search with the same model, prompts and settings resumes from it.
        trials: Number of skip sets to estimate; fewer if a shallow model has no more.
        finalists: Number of sets with the best estimates to time.
        repeats: Timings of each finalist, of which the median is used, after one that is not counted.
        rounds: Timings of the fastest one and of autoregressive decoding from which the reported speed-up is made.
        max_new_tokens: Number of tokens generated for each prompt; at least 2.
        draft_length: Largest number of draft tokens in a round.
        seed: Seed of the proposals. With the same ``costs``, the same seed proposes the same sets.
        costs: Costs of forwards; ``None`` measures them and keeps them in the journal.
        trainer: A trainer whose progress bar is on screen.
        progress: Show a progress bar.

    Returns:
        The skip set and its costs. They are also written to ``output``, with the model's fingerprint.

    Raises:
        ValueError: There are no prompts, a setting is outside its range, the model has another structure, or the
            journal belongs to another search.
    """
    for name, value, least in (
        ("trials", trials, 1),
        ("finalists", finalists, 1),
        ("repeats", repeats, 1),
        ("rounds", rounds, 1),
        ("max_new_tokens", max_new_tokens, 2),
        ("draft_length", draft_length, 1),
    ):
        check_count(name, value, least)
    if not prompts:
        raise ValueError("prompts must contain at least one prompt, got none: give held-out text.")
    refuse_other_file(output)  # before the work
    prompts = [prompt.detach().cpu() for prompt in prompts]
    weight = next(model.parameters())
    settings = {
        "fingerprint": model_fingerprint(model),
        "prompts": _digest(prompts),
        "max_new_tokens": max_new_tokens,
        "draft_length": draft_length,
        "seed": seed,
        "device": weight.device.type,
        "dtype": str(weight.dtype),
    }
    decoder = SelfSpeculative(draft_length=draft_length)
    path = Path(output).parent / "layer_search.jsonl" if log is None else log
    journal = Journal(path, settings, preliminary=("costs",))
    timer = DecoderTimer(model, prompts, max_new_tokens)
    timed = timer.steps(min(finalists, trials), repeats)
    with (
        undisturbed(model),
        progress_bar(trials + timed + timer.steps(2, rounds), "estimating", trainer, progress) as bar,
    ):
        costs, known = _estimate(model, timer, journal, trials, decoder, seed, costs, bar)
        best = _finalists(known, costs, finalists)
        contestants = [replace(decoder, skip=_sets(_skip(trial))) for trial in best]
        bar.describe("timing the best")
        seconds = [median(paces) for paces in timer.paces(contestants, repeats, bar)]
        bar.advance(timed - timer.steps(len(best), repeats))
        for trial, taken in zip(best, seconds, strict=True):
            journal.append("timing", {**_sets(_skip(trial)), "seconds_per_token": taken})
        winner = best[seconds.index(min(seconds))]
        skip = _skip(winner)
        bar.describe("timing the fastest once more")
        used = replace(decoder, skip=_sets(skip))
        baseline, own = timer.paces([Autoregressive(), used], rounds, bar)
    gains = [plain / pace for plain, pace in zip(baseline, own, strict=True)]
    journal.append("speedup", {**_sets(skip), "seconds_per_token": own, "baseline": baseline, "speedup": gains})
    result = LayerSkipResult(
        skip,
        median(own),
        median(baseline),
        median(gains),
        min(gains),
        max(gains),
        winner["match_rate"],
        len(known),
    )
    found = {key: value for key, value in asdict(result).items() if key != "skip"}
    write_skip_file(output, model, skip.attention, skip.mlp, {"search": settings | found, **provenance(seed)})
    return result


def _finalists(known: Sequence[dict[str, Any]], costs: ForwardCosts, count: int) -> list[dict[str, Any]]:
    """The trials with the best estimates among those that could gain; if none could, the best of all that skip some."""
    ordered = sorted(known, key=lambda trial: trial["seconds_per_token"])
    able = [trial for trial in ordered if costs.highest_speedup(_skip(trial)) >= LEAST_SPEEDUP]
    return able[:count] or [trial for trial in ordered if _skip(trial)][:1] or ordered[:1]


def _estimate(
    model: nn.Module,
    timer: DecoderTimer,
    journal: Journal,
    trials: int,
    decoder: SelfSpeculative,
    seed: int,
    costs: ForwardCosts | None,
    bar: Bar,
) -> tuple[ForwardCosts, list[dict[str, Any]]]:
    """Estimate skip sets until the journal has ``trials`` of them, and return the costs and the trials."""
    layers = len(decoder_layers(model))
    if costs is None:
        measured = journal.find("costs")
        if measured:
            costs = ForwardCosts(**{key: value for key, value in measured[0].items() if key != "kind"})
        else:
            costs = measure_costs(model, timer.prompts[0].tolist(), decoder.draft_length)
            journal.append("costs", costs.to_dict())
    texts = timer.texts()
    known = journal.find("trial")[:trials]
    bar.advance(len(known))
    observed = [(_skip(trial).bits(layers), trial["seconds_per_token"]) for trial in known]
    while len(known) < trials:
        if len({bits for bits, _ in observed}) == 4**layers:
            rank_zero_warn(
                f"saccade: the layer search ended after {len(known)} of {trials} trials, because this model has"
                f" no more than {4**layers} skip sets."
            )
            bar.advance(trials - len(known))
            break
        bits = propose(observed, 2 * layers, seed)
        skip = SkipSet.from_bits(bits)
        estimate = score(draft_trace(model, texts, skip), costs, skip, decoder.draft_length)
        journal.append("trial", {**_sets(skip), **asdict(estimate)})
        known.append(journal.entries[-1])
        observed.append((bits, estimate.seconds_per_token))
        best = min(seconds for _, seconds in observed)
        bar.describe(f"estimating (best {costs.full / best:.2f}x)")
        bar.advance()
    return costs, known


def _skip(trial: dict[str, Any]) -> SkipSet:
    return SkipSet(tuple(trial["attention"]), tuple(trial["mlp"]))


def _sets(skip: SkipSet) -> dict[str, list[int]]:
    return {"attention": list(skip.attention), "mlp": list(skip.mlp)}


def _digest(prompts: Sequence[Tensor]) -> str:
    content = hashlib.sha256()
    for prompt in prompts:
        content.update(f"{len(prompt)}:".encode() + prompt.to(torch.int64).numpy().tobytes())
    return content.hexdigest()[:16]


class LayerSkipSearch(PromptCollector):
    """Search the sub-layers to skip when training or validation ends, and write ``skip_layers.json``.

    See :func:`search_layers`. Prompts are rows of the validation data, a fixed pseudo-random choice. Rank 0 searches
    with its own prompts while the other ranks wait, and all ranks get the result. Keep the search shorter than the
    timeout of the process group, which is 30 minutes by default. The training is not changed.

    Args:
        when: ``"fit_end"``: once, when ``fit`` ends (``validate`` always searches when it ends);
            ``"validation_end"``: also after every validation of ``fit``, which starts a new search for the new weights.
        output: Name of the skip file in the run folder. The journal ``layer_search.jsonl`` is in the same folder.
        trials: Number of skip sets to estimate.
        finalists: Number of sets with the best estimates to time.
        repeats: Timings of each finalist.
        rounds: Timings of the fastest one and of autoregressive decoding from which the reported speed-up is made.
        prompt_length: Tokens taken from the start of each validation row.
        max_new_tokens: Number of tokens generated for each prompt; at least 2.
        max_prompts: Number of prompts.
        draft_length: Largest number of draft tokens in a round.
        seed: Seed of the proposals.

    Raises:
        ValueError: A setting is outside its range, weights are sharded, or there are no prompts.
    """

    def __init__(
        self,
        when: Literal["fit_end", "validation_end"] = "fit_end",
        output: str = "skip_layers.json",
        trials: int = 200,
        finalists: int = 10,
        repeats: int = 3,
        rounds: int = 5,
        prompt_length: int = 64,
        max_new_tokens: int = 64,
        max_prompts: int = 8,
        draft_length: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__(prompt_length, max_prompts)
        check_choice("when", when, ("fit_end", "validation_end"))
        for name, value in (("prompt_length", prompt_length), ("max_prompts", max_prompts), ("trials", trials)):
            check_count(name, value)
        if Path(output).name != output:
            raise ValueError(f"output must be a file name without a folder, got {output!r}: leave out the folder.")
        self.when, self.output = when, output
        self.settings: dict[str, Any] = {
            "trials": trials,
            "finalists": finalists,
            "repeats": repeats,
            "rounds": rounds,
            "max_new_tokens": max_new_tokens,
            "draft_length": draft_length,
            "seed": seed,
        }
        self.result: LayerSkipResult | None = None
        """Result of the latest search, on every rank."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a strategy with which the search would fail at the end of the training."""
        if shards_parameters(trainer) and trainer.world_size > 1:
            raise ValueError(
                f"LayerSkipSearch needs the whole model on rank 0, and {type(trainer.strategy).__name__} shards its"
                " weights: search the exported model with 'saccade search-layers'."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, depending on ``when``."""
        if not trainer.sanity_checking and (trainer.state.fn == "validate" or self.when == "validation_end"):
            self._search(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, depending on ``when``."""
        if self.when == "fit_end":
            with where_it_trained(trainer, pl_module):
                self._search(trainer, pl_module)

    def _search(self, trainer: Trainer, pl_module: LightningModule) -> None:
        answer: LayerSkipResult | str | None = None
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                answer = self._search_here(trainer, pl_module)
            except Exception as error:  # the other ranks wait for the broadcast and must learn of it
                failure, answer = error, " ".join(str(error).split())
        answer = trainer.strategy.broadcast(answer)
        if isinstance(answer, str):
            raise ValueError(f"LayerSkipSearch failed: {answer}") from failure
        self.result = answer

    def _search_here(self, trainer: Trainer, pl_module: LightningModule) -> LayerSkipResult:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{type(pl_module).__name__} has no attribute model to search: keep the causal language model there."
            )
        folder = run_folder(trainer)
        log = folder / "layer_search.jsonl"
        log.unlink(missing_ok=True)  # it belongs to earlier weights: the callback always starts a new search
        prompts = [prompt.tokens for prompt in self._pool.own()]
        if not prompts:
            raise ValueError(
                "the validation data contains no prompts: run a validation during fit, or search with validate."
            )
        result = search_layers(model, prompts, folder / self.output, log=log, trainer=trainer, **self.settings)
        rank_zero_info(
            f"LayerSkipSearch: {result.verdict}; skips attention {list(result.skip.attention)} and MLP "
            f"{list(result.skip.mlp)}, written to {folder / self.output}"
        )
        return result
