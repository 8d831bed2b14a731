"""What decoders need to know about Hugging Face models, and how they hand inputs over."""
