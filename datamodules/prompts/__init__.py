"""Prompts for evaluation: JSON lines, the built-in set, chat templates, images and videos."""
