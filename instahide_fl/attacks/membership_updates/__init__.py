"""Membership inference from updates and global models."""
