"""Drafters: each proposes tokens in its own way."""
