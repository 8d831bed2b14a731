"""Compression of the key-value cache: what is kept of a prompt."""
