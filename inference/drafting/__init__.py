"""Ways to propose tokens, one file each."""
