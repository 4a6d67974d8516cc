"""Measurements of speed and memory against the alternatives."""
