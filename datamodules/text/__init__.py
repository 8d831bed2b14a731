"""Text for language models: files, tokenizers, sequences of tokens."""
