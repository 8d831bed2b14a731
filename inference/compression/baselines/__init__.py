"""Other methods of cache compression, to compare with."""
