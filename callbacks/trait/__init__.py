"""Trait: training data selected by Bayesian optimisation."""
