"""Carrying out a study: runs side by side, each trained and then attacked."""
