"""Decoders measured during validation: evaluation, totals over ranks, report."""
