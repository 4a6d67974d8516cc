"""Replays the keys of a client whose seed can be searched."""
