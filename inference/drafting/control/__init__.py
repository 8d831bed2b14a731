"""How many tokens are drafted: what rounds cost, what is accepted, and the choice that follows from both (ours)."""

from saccade.inference.drafting.control.control import Control
from saccade.inference.drafting.control.draft_control import ControlKind, DraftControl, choices

__all__ = ["Control", "ControlKind", "DraftControl", "choices"]
