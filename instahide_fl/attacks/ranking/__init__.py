"""Ranking public images by how well an encoding can be a mixture of them."""
