"""What an attack achieved: held against the truth, its guesses and its control."""
