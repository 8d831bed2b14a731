"""Relaxed verification of chains: rules that accept some drafted tokens that are not the target's choice."""

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
    ranks_and_ratios,
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
    "ranks_and_ratios",
    "top_entropy",
    "visual_relevance",
]
