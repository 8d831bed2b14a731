"""Triton kernels of the engine; each has a torch function elsewhere that says what it computes."""
