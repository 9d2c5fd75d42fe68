"""The GitHub App: a stateless webhook receiver."""
