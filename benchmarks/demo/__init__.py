"""The table of the demo in the README."""
