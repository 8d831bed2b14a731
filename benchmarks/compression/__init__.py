"""Measurements of cache compression."""
