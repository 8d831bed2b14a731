"""Rankers: bi-encoders and cross-encoders, their features, mined negatives, export."""
