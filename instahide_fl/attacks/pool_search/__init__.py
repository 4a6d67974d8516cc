"""Finds the public images that were mixed into an encoding."""
