"""Which drafted tokens are accepted: greedy, sampled, and relaxed rules."""
