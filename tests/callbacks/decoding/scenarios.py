"""The evaluations that one process and two processes must agree on."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from saccade.callbacks import DecodingEvaluation
from saccade.datamodules import Prompts
from saccade.inference import AssistedDecoding, PromptLookup, Quest, Sampling, SelfSpeculative
from saccade.modules import LanguageModel
from tests.callbacks.tiny import rows, tiny_llama
from tests.support.chat_models import chat_model, write_prompts


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
            "lookup": PromptLookup(control="fixed"),
            "self_speculative": SelfSpeculative(
                control="fixed", skip={"attention": [1], "mlp": [1]}, draft_length=3, gamma=0.3, epsilon=1.0, beta2=0.2
            ),
            "assisted": AssistedDecoding(tiny_llama(2), draft_length=2, control="fixed"),
        },
        prompt_length=6,
        max_new_tokens=8,
        max_prompts=scenario.max_prompts,
        sampling=scenario.sampling,
        compressors={"quest": Quest(budget=0.7, chunk=2)},
    )


# conversations of one to three turns; the second has no room for its last turn, and the last one for its first
PROMPTS = [
    {"prompt": "hello fox", "category": "a", "answer": "fox"},
    {"turns": ["one", "quick", "fox " * 40], "category": "b", "answers": ["x", None, "y"]},
    {"prompt": "two and two?", "category": "c", "answer": "4"},
    {"prompt": "brown fox", "category": "c"},
    {"prompt": "quick " * 60, "category": "a", "id": "long"},
]


def write_prompt_files(folder: Path) -> None:
    """A model and its prompts; in a process group, transformers would write on the first rank only."""
    chat_model(folder / "chat", context=96)
    write_prompts(folder / "p.jsonl", PROMPTS)


def prompts_evaluation(folder: Path) -> tuple[DecodingEvaluation, LanguageModel, Prompts]:
    """A module in float64 and its prompts, from the files of `write_prompt_files`."""
    module = LanguageModel(path=str(folder / "chat"))
    module.build()
    module.model.double()
    data = Prompts([str(folder / "p.jsonl")])
    settings = {"max_new_tokens": 6, "max_prompts": None, "repeats": 2, "transformers": True}
    return DecodingEvaluation({"lookup": PromptLookup(control="fixed")}, **settings), module, data
