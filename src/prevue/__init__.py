"""Prevue: a running preview on Kubernetes for every GitHub pull request."""
