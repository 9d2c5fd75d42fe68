"""Kubernetes, as the pipeline uses it."""
