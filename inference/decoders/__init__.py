"""Decoding methods."""
