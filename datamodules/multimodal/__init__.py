"""Multimodal samples: feature files, synthetic data, and missing-data protocols."""
