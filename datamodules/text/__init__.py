"""Text: files, tokenizers, token sequences for language models."""
