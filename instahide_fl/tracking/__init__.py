"""Runs in TensorBoard and MLflow, beside their own folder."""
