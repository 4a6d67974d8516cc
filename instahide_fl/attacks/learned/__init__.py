"""Networks that attackers train on mixtures of their own."""
