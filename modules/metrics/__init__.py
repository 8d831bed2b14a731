"""Metrics of sentiment regression and of classification, exact on any number of ranks.

Accuracies and F1 are fractions, errors have the unit of the labels; tables multiply fractions by 100.
"""

from saccade.modules.metrics.auilc import auilc
from saccade.modules.metrics.collection import metrics_for
from saccade.modules.metrics.regression import MeanAbsoluteError, PearsonCorrelation
from saccade.modules.metrics.sentiment import SentimentAccuracy, SentimentF1, sentiment_class

__all__ = [
    "MeanAbsoluteError",
    "PearsonCorrelation",
    "SentimentAccuracy",
    "SentimentF1",
    "auilc",
    "metrics_for",
    "sentiment_class",
]
