"""Multimodal samples: feature files, synthetic data, and what may be missing."""
