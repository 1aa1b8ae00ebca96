"""Coefficients that depend on what the members say: pure functions of their log-probs at a position."""
