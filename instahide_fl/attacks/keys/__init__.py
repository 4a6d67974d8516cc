"""Keys: drawn again from a seed, held against what was observed, and used."""
