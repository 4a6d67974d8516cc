"""Deployment: clients and server on machines that belong to different people."""
