"""Search for the sub-layers that a self-speculative draft skips."""
