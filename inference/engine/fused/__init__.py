"""The fused decoding step: what of a model it reads, its operations in torch, and the step."""
