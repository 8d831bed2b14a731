"""Clips with captions and questions: files, a synthetic world, preprocessing."""
