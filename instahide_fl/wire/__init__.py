"""The records that clients and server exchange."""
