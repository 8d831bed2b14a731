"""Parallel speculation: a draft model that goes on writing while the target verifies."""
