"""Evaluation of robustness to missing data: predictions of all ranks, metrics, report and figures."""
