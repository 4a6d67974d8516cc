"""Metrics: how alike images and labels are, and what chance alone would reach."""
