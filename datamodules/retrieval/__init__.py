"""Retrieval pairs: files, sources, targets, chunks of training data."""
