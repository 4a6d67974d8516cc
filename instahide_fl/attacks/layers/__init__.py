"""What single layers give away: the first and the last, and statistics of BatchNorm."""
