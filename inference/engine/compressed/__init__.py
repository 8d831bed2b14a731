"""The cache of a compressed prompt: KV heads of different lengths, and chunks in host memory."""
