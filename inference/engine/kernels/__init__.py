"""Triton kernels of the engine. A torch function elsewhere is the reference of each."""
