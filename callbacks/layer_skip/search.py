"""The search for the sub-layers that a self-speculative draft skips."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from saccade.callbacks.decoding.prompts import PromptCollector
from saccade.callbacks.isolation import undisturbed, where_it_trained
from saccade.callbacks.layer_skip.proposals import propose
from saccade.callbacks.layer_skip.proxy import ForwardCosts, SkipSet, draft_trace, measure_costs, score
from saccade.callbacks.run_folder import run_folder
from saccade.common.checks import check_count
from saccade.common.distributed import shards_parameters
from saccade.common.journal import TrialLog
from saccade.common.progress import Bar, progress_bar
from saccade.common.provenance import provenance
from saccade.inference import Autoregressive, Decoder, SelfSpeculative
from saccade.inference.drafting.skip_sets import model_fingerprint, refuse_other_file, write_skip_file
from saccade.inference.huggingface.sublayer_skip import decoder_layers


@dataclass(frozen=True)
class LayerSkipResult:
    """What a search found.

    Args:
        skip: The skip set with the shortest wall-clock time for each token, of those timed.
        seconds_per_token: Its time for each token, the median of the repeats.
        baseline_seconds_per_token: The autoregressive decoder's time on the same prompts.
        matchness: Share of the full model's tokens that the draft says too, in one parallel pass.
        trials: Skip sets that were estimated.
    """

    skip: SkipSet
    seconds_per_token: float
    baseline_seconds_per_token: float
    matchness: float
    trials: int

    @property
    def speedup(self) -> float:
        """Times faster than autoregressive decoding; below 1 the model is its own bad draft."""
        return self.baseline_seconds_per_token / self.seconds_per_token


def search_layers(
    model: nn.Module,
    prompts: Sequence[Tensor],
    output: str | Path = "skip_layers.json",
    *,
    log: str | Path | None = None,
    trials: int = 200,
    finalists: int = 10,
    repeats: int = 3,
    max_new_tokens: int = 64,
    draft_length: int = 12,
    gamma: float = 0.6,
    seed: int = 0,
    costs: ForwardCosts | None = None,
    trainer: Trainer | None = None,
    progress: bool = True,
) -> LayerSkipResult:
    """Searches the skip set with the least wall-clock time for each verified token (arXiv 2309.08168, section 3.2).

    Acceptance alone would choose to skip nothing. So each of ``trials`` skip sets is first estimated: one parallel pass
    of the draft over text that the model has written says what it would have got right, and the measured cost of
    sub-layers says what drafting would have cost. Bayesian optimisation proposes the sets. The best ``finalists`` are
    then decoded for real and timed, and the fastest is written.

    Args:
        model: A Llama-, Qwen2- or Qwen3-shaped causal language model on its device, not sharded.
        prompts: Token ids ``[length]`` of each prompt; lengths may differ. Held-out text like the text of later use.
        output: The skip file to write, for ``SelfSpeculative(skip=...)``.
        log: The trial log, one JSON object a line; ``None`` puts ``layer_search.jsonl`` beside ``output``. A search
            with the same model, prompts and settings goes on from it.
        trials: Skip sets to estimate.
        finalists: Estimated best sets to time for real.
        repeats: Timings of each finalist, of which the median counts, after one that does not.
        max_new_tokens: Tokens generated for each prompt.
        draft_length: Most drafted tokens in a round.
        gamma: Confidence below which drafting stops; adaptive when finalists are timed.
        seed: Of the proposals. With the same ``costs``, the same seed tries the same sets.
        costs: Costs of forwards; ``None`` measures them (once: the log keeps them).
        trainer: A trainer whose progress bar is on screen.
        progress: Show a progress bar.

    Returns:
        The skip set and what it costs; the same is in ``output``, with the model's fingerprint.

    Raises:
        ValueError: No prompts, an impossible setting, a model of another form, or a log of another search.
    """
    for name, value, least in (
        ("trials", trials, 1),
        ("finalists", finalists, 1),
        ("repeats", repeats, 1),
        ("max_new_tokens", max_new_tokens, 2),
        ("draft_length", draft_length, 1),
    ):
        check_count(name, value, least)
    if not prompts:
        raise ValueError("prompts is empty: give at least one prompt to search with.")
    refuse_other_file(output)  # before the work, not behind it
    prompts = [prompt.detach().cpu() for prompt in prompts]
    weight = next(model.parameters())
    settings = {
        "fingerprint": model_fingerprint(model),
        "prompts": _digest(prompts),
        "max_new_tokens": max_new_tokens,
        "draft_length": draft_length,
        "gamma": gamma,
        "seed": seed,
        "device": weight.device.type,
        "dtype": str(weight.dtype),
    }
    decoder = SelfSpeculative(draft_length=draft_length, gamma=gamma, carry=False)
    journal = TrialLog(Path(output).parent / "layer_search.jsonl" if log is None else log, settings)
    timer = _Timer(model, prompts, max_new_tokens)
    steps = trials + (min(finalists, trials) + 1) * (repeats + 1)
    with undisturbed(model), progress_bar(steps, "estimating", trainer, progress) as bar:
        known = _estimate(model, timer, journal, trials, decoder, seed, costs, bar)
        bar.describe("timing the best")
        best = sorted(known, key=lambda trial: trial["seconds_per_token"])[:finalists]
        skips = [SkipSet(tuple(trial["attention"]), tuple(trial["mlp"])) for trial in best]
        contestants = [Autoregressive(), *(replace(decoder, skip=_sets(skip)) for skip in skips)]
        baseline, *seconds = timer.measure(contestants, repeats, bar)
    for skip, taken in zip(skips, seconds, strict=True):
        journal.append("timing", {**_sets(skip), "seconds_per_token": taken, "baseline": baseline})
    winner = seconds.index(min(seconds))
    skip = skips[winner]
    result = LayerSkipResult(skip, seconds[winner], baseline, best[winner]["matchness"], len(known))
    found = {key: value for key, value in asdict(result).items() if key != "skip"} | {"speedup": result.speedup}
    write_skip_file(output, model, skip.attention, skip.mlp, {"search": settings | found, **provenance(seed)})
    return result


def _estimate(
    model: nn.Module,
    timer: _Timer,
    journal: TrialLog,
    trials: int,
    decoder: SelfSpeculative,
    seed: int,
    costs: ForwardCosts | None,
    bar: Bar,
) -> list[dict[str, Any]]:
    """Fills the log up to ``trials`` estimated skip sets and returns them."""
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
    observed = [
        (SkipSet(tuple(trial["attention"]), tuple(trial["mlp"])).bits(layers), trial["seconds_per_token"])
        for trial in known
    ]
    while len(known) < trials:
        bits = propose(observed, 2 * layers, seed)
        skip = SkipSet.from_bits(bits)
        estimate = score(draft_trace(model, texts, skip), costs, skip, decoder.draft_length, decoder.gamma)
        journal.append("trial", {**_sets(skip), **asdict(estimate)})
        known.append(journal.entries[-1])
        observed.append((bits, estimate.seconds_per_token))
        best = min(seconds for _, seconds in observed)
        bar.describe(f"estimating (best {costs.full / best:.2f}x)")
        bar.advance()
    return known


class _Timer:
    """Decodes the same prompts with whatever is to be timed."""

    def __init__(self, model: nn.Module, prompts: Sequence[Tensor], max_new_tokens: int) -> None:
        self.model, self.prompts, self.max_new_tokens = model, prompts, max_new_tokens
        self.device = next(model.parameters()).device

    def texts(self) -> list[tuple[Tensor, int]]:
        """The prompts with what the full model writes behind them, and the number of tokens written."""
        found = []
        for prompt in self.prompts:
            tokens = self._run(Autoregressive(), prompt).tokens[0]
            found.append((torch.cat([prompt, torch.tensor(tokens, dtype=prompt.dtype)]), len(tokens)))
        return found

    def measure(self, decoders: Sequence[Decoder], repeats: int, bar: Bar) -> list[float]:
        """Seconds for each new token, the median over repeats; one run before them is not counted.

        The decoders take turns, so that a machine that becomes slower meanwhile is slower for all of them.
        """
        rates: list[list[float]] = [[] for _ in decoders]
        for attempt in range(repeats + 1):
            for decoder, found in zip(decoders, rates, strict=True):
                stats = [self._run(decoder, prompt).stats for prompt in self.prompts]
                if attempt:
                    found.append(sum(item.seconds for item in stats) / sum(item.new_tokens for item in stats))
                bar.advance()
        return [statistics.median(found) for found in rates]

    def _run(self, decoder: Decoder, prompt: Tensor) -> Any:
        return decoder.generate(
            self.model, prompt[None].to(self.device), max_new_tokens=self.max_new_tokens, do_sample=False
        )


def _sets(skip: SkipSet) -> dict[str, list[int]]:
    return {"attention": list(skip.attention), "mlp": list(skip.mlp)}


def _digest(prompts: Sequence[Tensor]) -> str:
    content = hashlib.sha256()
    for prompt in prompts:
        content.update(f"{len(prompt)}:".encode() + prompt.to(torch.int64).numpy().tobytes())
    return content.hexdigest()[:16]


class LayerSkipSearch(PromptCollector):
    """Searches the sub-layers to skip when training or validation ends, and writes ``skip_layers.json``.

    See :func:`search_layers`. Prompts are rows of the validation data, a fixed pseudo-random choice. Rank 0 searches
    with the prompts it was given, the other ranks wait (keep the search shorter than the process group's timeout,
    30 minutes by default), and all of them know the result. Training is not disturbed.

    Args:
        when: ``"fit_end"``: once, when ``fit`` ends (``validate`` always searches when it ends);
            ``"validation_end"``: also after every validation of ``fit``, which starts a new search for the new weights.
        output: Name of the skip file in the run folder. The trial log lies beside it.
        trials: Skip sets to estimate.
        finalists: Estimated best sets to time for real.
        repeats: Timings of each finalist.
        prompt_length: Tokens taken from the start of each validation row.
        max_new_tokens: Tokens generated for each prompt.
        max_prompts: Number of prompts.
        draft_length: Most drafted tokens in a round.
        gamma: Confidence below which drafting stops.
        seed: Of the proposals.

    Raises:
        ValueError: A setting outside its range, sharded weights, or no prompts.
    """

    def __init__(
        self,
        when: Literal["fit_end", "validation_end"] = "fit_end",
        output: str = "skip_layers.json",
        trials: int = 200,
        finalists: int = 10,
        repeats: int = 3,
        prompt_length: int = 64,
        max_new_tokens: int = 64,
        max_prompts: int = 8,
        draft_length: int = 12,
        gamma: float = 0.6,
        seed: int = 0,
    ) -> None:
        super().__init__(prompt_length, max_prompts)
        if when not in ("fit_end", "validation_end"):
            raise ValueError(f"when must be fit_end or validation_end, got {when!r}.")
        for name, value in (("prompt_length", prompt_length), ("max_prompts", max_prompts), ("trials", trials)):
            check_count(name, value)
        if Path(output).name != output:
            raise ValueError(f"output must be a file name without a folder, got {output!r}: it lies in the run folder.")
        self.when, self.output = when, output
        self.settings: dict[str, Any] = {
            "trials": trials,
            "finalists": finalists,
            "repeats": repeats,
            "max_new_tokens": max_new_tokens,
            "draft_length": draft_length,
            "gamma": gamma,
            "seed": seed,
        }
        self.result: LayerSkipResult | None = None
        """What the latest search found, on every rank."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what would fail after hours of training."""
        if shards_parameters(trainer) and trainer.world_size > 1:
            raise ValueError(
                "LayerSkipSearch needs the whole model on rank 0, but the strategy shards its weights: search the "
                "exported model with 'saccade search-layers'."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches, if it is time."""
        if not trainer.sanity_checking and (trainer.state.fn == "validate" or self.when == "validation_end"):
            self._search(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches, if it is time."""
        if self.when == "fit_end":
            with where_it_trained(trainer, pl_module):
                self._search(trainer, pl_module)

    def _search(self, trainer: Trainer, pl_module: LightningModule) -> None:
        answer: LayerSkipResult | str | None = None
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                answer = self._search_here(trainer, pl_module)
            except Exception as error:  # the other ranks wait for the broadcast: they must hear of it
                failure, answer = error, " ".join(str(error).split())
        answer = trainer.strategy.broadcast(answer)
        if isinstance(answer, str):
            raise ValueError(f"LayerSkipSearch failed: {answer}") from failure
        self.result = answer

    def _search_here(self, trainer: Trainer, pl_module: LightningModule) -> LayerSkipResult:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{type(pl_module).__name__} has no .model to search: keep the causal language model there."
            )
        folder = run_folder(trainer)
        log = folder / "layer_search.jsonl"
        log.unlink(missing_ok=True)  # of other weights: a callback's search begins anew
        prompts = [prompt.tokens for prompt in self._pool.own()]
        if not prompts:
            raise ValueError("the validation data gave no prompts: fit needs a validation to search after.")
        result = search_layers(model, prompts, folder / self.output, log=log, trainer=trainer, **self.settings)
        rank_zero_info(
            f"LayerSkipSearch: {result.speedup:.2f}x over autoregressive with attention {list(result.skip.attention)} "
            f"and MLP {list(result.skip.mlp)} skipped, written to {folder / self.output}"
        )
        return result
