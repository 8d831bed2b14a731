"""Statistics of decoding, as one record of plain sums. Names follow vLLM and NVIDIA AIPerf."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class DecodingStats:
    """Counts and times of one request, or of several requests pooled with ``a + b``.

    Args:
        requests: Number of rows.
        prompt_tokens: Tokens of the prompts.
        new_tokens: Emitted tokens, EOS included.
        verify_steps: Rounds after the prefill, summed over rows. Each emits its accepted draft tokens and the bonus
            token, or the recovered token after a rejection.
        drafted: Drafted tokens that were verified.
        accepted: Drafted tokens that were accepted and emitted.
        target_forwards: Forward calls of the target, the prefill included. A pooled record counts a call for several
            rows of a batch once.
        draft_forwards: Forward calls of the draft model, or of the target with skipped sub-layers.
        seconds: Wall-clock time. For a request of a batch, the time until its last token; for the pooled record of one
            ``generate`` call, the time of the call. Sums of pooled records add up.
        prefill_seconds: Wall-clock time until the first token, counted once for each ``generate`` call.
        first_token_seconds: The same time, summed over requests.
        draft_prefill_seconds: Wall-clock time in which a draft model selected and read its prompts, counted like
            ``prefill_seconds``; part of ``seconds``, not of ``prefill_seconds``.
        relaxed: Emitted tokens that differ from the target's choice; 0 for lossless decoders.
        acceptance_histogram: ``{accepted draft tokens in a round: number of rounds}``, without the bonus token.
        peak_memory_bytes: Peak memory allocated by torch on the GPU; 0 on a CPU. Pooled as the maximum.
        kv_cache_bytes: Size of the key-value buffers on the device, the draft's included. Pooled as the maximum.
        kv_host_bytes: Size of the keys and values that a compressed cache keeps in host memory. Pooled as the maximum.
    """

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    verify_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    draft_prefill_seconds: float = 0.0
    relaxed: int = 0
    acceptance_histogram: dict[int, int] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    kv_cache_bytes: int = 0
    kv_host_bytes: int = 0

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per verification, bonus token included: ``1 + accepted / verify_steps``."""
        return 1.0 + self.mean_accepted_draft_tokens

    @property
    def mean_accepted_draft_tokens(self) -> float:
        """Accepted draft tokens per verification, without the bonus token, as papers report it."""
        return self.accepted / self.verify_steps if self.verify_steps else 0.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Share of the drafted tokens that were accepted; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def relaxed_share(self) -> float:
        """Share of the emitted tokens that differ from the target's choice; 0 for lossless decoders."""
        return self.relaxed / self.new_tokens if self.new_tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens per second of wall-clock time, prefill included."""
        return self.new_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def time_to_first_token(self) -> float:
        """Seconds until the first token, the mean over requests."""
        return self.first_token_seconds / self.requests if self.requests else 0.0

    @property
    def time_per_output_token(self) -> float:
        """Seconds per token after the first."""
        later = self.new_tokens - self.requests
        return (self.seconds - self.prefill_seconds) / later if later > 0 else 0.0

    def record(self, drafted: int, accepted: int) -> None:
        """Counts one verification round of one row."""
        self.verify_steps += 1
        self.drafted += drafted
        self.accepted += accepted
        self.acceptance_histogram[accepted] = self.acceptance_histogram.get(accepted, 0) + 1

    def __add__(self, other: DecodingStats) -> DecodingStats:
        pooled = DecodingStats()
        for item in fields(DecodingStats):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name == "acceptance_histogram":
                value: Any = {key: mine.get(key, 0) + theirs.get(key, 0) for key in sorted({*mine, *theirs})}
            else:
                value = max(mine, theirs) if item.name.endswith("_bytes") else mine + theirs
            setattr(pooled, item.name, value)
        return pooled

    def to_dict(self) -> dict[str, Any]:
        """Fields and derived properties as plain values; histogram keys are strings, as in JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["acceptance_histogram"] = {str(key): count for key, count in sorted(self.acceptance_histogram.items())}
        derived = [name for name, item in vars(DecodingStats).items() if isinstance(item, property)]
        return values | {name: getattr(self, name) for name in derived}
