"""T2DR, its layers and its baselines."""
