"""What the server saw of a run, what it did not, and who knows which part of it."""
