"""Shared code: validators of settings, atomic files, timing, provenance, progress bars, exchanges between ranks."""
