"""Fits that are interrupted and continued, beside fits that are not."""
