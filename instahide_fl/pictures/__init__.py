"""Pictures for people: contact sheets, partitions, encodings and evaluations."""
