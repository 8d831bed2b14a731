"""The engine that runs forwards for decoders: sessions, key-value cache, CUDA graphs, fused kernels, rank agreement."""
