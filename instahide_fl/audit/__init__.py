"""Runs attacks, opens the truth that they must not see, and judges the outcome."""
