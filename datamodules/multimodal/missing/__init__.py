"""Protocols that take data away, and the masks they draw."""
