"""Search: BM25, a FAISS vector index, and the evaluation of ranked lists."""
