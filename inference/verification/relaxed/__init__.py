"""Relaxed verification of a drafted chain: rules that let some tokens stand which the target would not have chosen."""

from saccade.inference.verification.relaxed.baselines import RandomRelaxation, Strict
from saccade.inference.verification.relaxed.fly import FLy, FLyPlus, top_entropy
from saccade.inference.verification.relaxed.lvspec import VisualRelaxation
from saccade.inference.verification.relaxed.relevance import directions, visual_relevance
from saccade.inference.verification.relaxed.rule import (
    AuditEntry,
    Judged,
    Reason,
    RelaxedRule,
    RowState,
    Ruling,
    standing,
)

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
    "standing",
    "top_entropy",
    "visual_relevance",
]
