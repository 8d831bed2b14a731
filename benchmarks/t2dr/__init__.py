"""The study of T2DR and its baselines."""
