"""Relaxed verification of a drafted chain: rules that let some tokens stand which the target would not have chosen."""

from saccade.inference.relaxation.baselines import RandomRelaxation, Strict
from saccade.inference.relaxation.fly import FLy, FLyPlus, top_entropy
from saccade.inference.relaxation.forecast import expected_accepted, mismatch_rate
from saccade.inference.relaxation.lvspec import VisualRelaxation
from saccade.inference.relaxation.relevance import directions, visual_relevance
from saccade.inference.relaxation.rule import AuditEntry, Judged, Reason, RelaxedRule, RowState, Ruling, standing

__all__ = [
    "AuditEntry",
    "FLy",
    "FLyPlus",
    "Judged",
    "RandomRelaxation",
    "Reason",
    "RelaxedRule",
    "RowState",
    "Ruling",
    "Strict",
    "VisualRelaxation",
    "directions",
    "expected_accepted",
    "mismatch_rate",
    "standing",
    "top_entropy",
    "visual_relevance",
]
