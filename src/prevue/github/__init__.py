"""GitHub, as Prevue uses it."""
