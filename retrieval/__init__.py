"""Search without Lightning: BM25, a vector index on torch or FAISS, and the measures of ranked lists."""
