"""Base of the decoders whose draft model works while the target verifies."""

# no postponed annotations: see inference/decoder.py
from abc import abstractmethod
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from saccade.common.checks import check_count, check_model
from saccade.inference.draft_decoder import DraftModelDecoder
from saccade.inference.drafting.control import Control
from saccade.inference.drafting.draft_session import DraftSession
from saccade.inference.drafting.drafter import Drafter
from saccade.inference.drafting.loading import draft_for
from saccade.inference.huggingface.models import device_of
from saccade.inference.parallel.control import RoundControl
from saccade.inference.parallel.overlap import Overlap, check_devices, draft_device
from saccade.inference.parallel.rounds import MOST_READ, LookUp, ParallelDrafter
from saccade.inference.request import Request


@dataclass
class ParallelDecoder(DraftModelDecoder):
    """A decoder with a draft model that writes on while the target verifies; a subclass says what is looked up.

    Args:
        draft_model: The draft model.
        gamma: Forwards of the draft model in a round.
        devices: Where the draft model runs.
    """

    draft_model: str | PreTrainedModel | None = field()  # required: the base has a default
    gamma: int = 4
    devices: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model("draft_model", self.draft_model)  # the base allows None
        check_count("gamma", self.gamma)
        check_devices(self.devices)
        if self.gamma > MOST_READ:
            raise ValueError(
                f"gamma must be at most {MOST_READ}, what a round verifies, got {self.gamma}: give about the number of "
                "draft forwards that take as long as one of the target."
            )

    @abstractmethod
    def look_up(self) -> LookUp:
        """What both sides look up."""

    @property
    def most(self) -> int:
        """Most tokens of a block: what the target can verify in a round with one looked-up token."""
        return min(self.gamma * (1 + self.look_up().draft), MOST_READ)

    @property
    def width(self) -> int:
        """The most pending tokens and looked-up ones behind them."""
        return min(self.most - 1 + self.look_up().target, MOST_READ)

    def new_control(self) -> Control:
        """A control that chooses the kind of the next rounds."""
        return RoundControl(self.gamma, bool(self.look_up().target))

    def draft(self, model: nn.Module, request: Request) -> nn.Module:
        """The draft model for a request, on its device."""
        given = self.draft_model
        if given is None:
            raise ValueError("draft_model must be a path, a hub id or a loaded model, got None: give one of these.")
        return draft_for(given, model, request, self._loaded, draft_device(self.devices, model, given))

    def drafter(self, model: nn.Module, request: Request) -> Drafter:
        """Proposes what the draft model has written while the last round was verified."""
        draft = self.draft(model, request)
        extra = request.max_new_tokens + self.width + self.most + self.look_up().draft
        session = DraftSession(draft, extra, request.prompts, self.pool, rollback=2 * self.most + self.look_up().draft)
        overlap = Overlap(device_of(model), device_of(draft))
        look_up, name = self.look_up(), type(self).__name__
        return ParallelDrafter(session, self.gamma, self.most, look_up, overlap, request.max_new_tokens, name)
