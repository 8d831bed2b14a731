"""Trait: select training data for a ranker by Bayesian optimisation."""
