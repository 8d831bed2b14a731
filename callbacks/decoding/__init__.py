"""Evaluation of decoders during validation: prompts, totals over ranks, report and figure."""
