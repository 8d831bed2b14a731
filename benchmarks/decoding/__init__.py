"""Speed of decoders: one token at a time, speculation, layer skipping."""
