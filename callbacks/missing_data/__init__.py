"""Robustness to missing data: evaluation, totals over ranks, report."""
