"""Rankers for retrieval: bi-encoders and cross-encoders, their features, mined negatives, and export."""
