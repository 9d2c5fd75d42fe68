"""The schema's migrations, and the roles that use it: `await migrate(url)`."""

from prevue.migrations.run import HEAD, migrate

__all__ = ["HEAD", "migrate"]
