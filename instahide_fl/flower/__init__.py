"""Everything that touches Flower's internals, its files and its programs."""
