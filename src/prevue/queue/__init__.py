"""The queue that carries requests from the GitHub App to the deployers."""
