"""All that touches Flower's internals and its programs."""
