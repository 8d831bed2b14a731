"""Verification of drafts: strict greedy, strict sampling and relaxed rules."""
