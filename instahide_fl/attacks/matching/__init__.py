"""What attacks by gradient matching share: guesses moved until their gradient fits."""
