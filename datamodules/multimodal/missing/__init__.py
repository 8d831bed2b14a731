"""Missing-data protocols and their random masks."""
