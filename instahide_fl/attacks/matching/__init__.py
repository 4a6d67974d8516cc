"""The parts of attacks by gradient matching, which move guesses until gradients fit."""
