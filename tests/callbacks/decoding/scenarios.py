"""The evaluations that one process and two processes must agree on."""

from dataclasses import dataclass

from torch import Tensor

from saccade.callbacks import DecodingEvaluation
from saccade.inference import AssistedDecoding, PromptLookup, Sampling, SelfSpeculative
from tests.callbacks.tiny import rows, tiny_llama


@dataclass
class Scenario:
    ids: Tensor
    max_prompts: int = 32
    sampling: Sampling | None = None


SCENARIOS = {
    # the distributed sampler pads 7 rows to 8: its duplicate must not be decoded twice
    "padded": Scenario(rows(7)),
    # one row: the other rank is given a copy, and has nothing to do
    "one": Scenario(rows(1, seed=1)),
    "selected": Scenario(rows(12, seed=2), max_prompts=5, sampling=Sampling(temperature=1.5, seed=3)),
}


def evaluation(scenario: Scenario) -> DecodingEvaluation:
    return DecodingEvaluation(
        {
            "lookup": PromptLookup(),
            "self_speculative": SelfSpeculative(
                skip={"attention": [1], "mlp": [1]}, draft_length=3, gamma=0.3, epsilon=1.0, beta2=0.2
            ),
            "assisted": AssistedDecoding(tiny_llama(2), draft_length=2),
        },
        prompt_length=6,
        max_new_tokens=8,
        max_prompts=scenario.max_prompts,
        sampling=scenario.sampling,
    )
