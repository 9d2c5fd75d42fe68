"""Helm, as the pipeline uses it."""
