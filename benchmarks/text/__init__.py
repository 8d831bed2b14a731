"""Measurements of preparing text."""
