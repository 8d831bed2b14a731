"""Training data of retrievers: files, sources, targets, and chunks of query-document pairs."""
