"""Separates Mixup encodings into the images that were mixed."""
