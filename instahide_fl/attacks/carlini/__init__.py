"""Carlini et al. (IEEE S&P 2021): private images from encodings, without the key."""
