"""First stage, vector index and measures of retrieval."""
