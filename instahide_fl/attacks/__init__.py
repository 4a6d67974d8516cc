"""Attacks: what an adversary makes of what it saw. One attack a file."""
