"""Checkpoints of a run: when they are saved, and how they are written."""
