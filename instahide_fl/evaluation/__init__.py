"""How well a model classifies test images: clean ones, and encodings of them."""
