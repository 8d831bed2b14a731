"""The pool on which decoders stand: session, cache, synchronisation of ranks."""
