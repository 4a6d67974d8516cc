"""Scores what an attack recovered against the truth, and against baselines."""
