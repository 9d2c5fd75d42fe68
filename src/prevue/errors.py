"""The one tree of errors.

A backend translates its vendor's exceptions at its edge (`raise … from exc`); text that comes from outside is cut and freed of
secrets there. What an error *means* for a claim is decided by its place in this tree and nowhere else:

- `OutageError`: somebody else is down or wants us to wait. The claim is given back, no attempt is counted.
- any other `TransientError`, and whatever nobody classified: an attempt is spent, backoff, then again.
- `PermanentError`: the chart's, the app's or the asker's fault. The request ends, and the pull request says why.
- `StaleClaim`: the claim is lost. Kill the child, write nothing, say nothing.
"""

from __future__ import annotations


class PrevueError(Exception):
    """An error that Prevue raises itself; the class docstring is the message where none is given."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class ConfigError(PrevueError):
    """A setting is missing or wrong; the message names the setting, its place and the accepted values."""


class MessageInvalid(PrevueError):
    """A queue's message cannot be read: not JSON, too large, or a field is wrong. It can never be carried out."""


class StaleClaim(PrevueError):
    """A larger token has been given out for this preview, or the lease has run out: nothing was written."""


class TransientError(PrevueError):
    """Something failed that may work later; `retry_after` in seconds, where the other side said so."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HelmInterrupted(TransientError):
    """Helm was ended by its deadline or a signal before it finished."""


class NamespaceTerminating(TransientError):
    """The preview's namespace is still being deleted."""


class OutageError(TransientError):
    """A system that Prevue needs is down or asks for patience; the attempt is given back."""


class QueueUnavailable(OutageError):
    """The queue cannot be reached or refuses."""


class StateStoreUnavailable(OutageError):
    """The statestore cannot be reached."""


class GitHubUnavailable(OutageError):
    """GitHub does not answer, or answers with a server error."""


class RateLimited(GitHubUnavailable):
    """GitHub's primary or secondary rate limit is reached."""


class ClusterUnavailable(OutageError):
    """The Kubernetes API server does not answer, or asks for patience."""


class ImpossibleEvent(PrevueError):
    """A mistake of ours: the lifecycle has no such step. Nothing was written."""


class PermanentError(PrevueError):
    """Trying again would change nothing; `details` (last log lines, say) are for the pull request."""

    def __init__(self, message: str = "", *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class NotConfigured(PermanentError):
    """No chart is configured for this repository."""


class NotInstalled(PermanentError):
    """The GitHub App is not installed on this repository, is suspended, or lacks the permission."""


class NotFound(PermanentError):
    """GitHub knows no such repository, pull request or comment."""


class ChartInvalid(PermanentError):
    """The chart does not render with these values."""


class ReleaseFailed(PermanentError):
    """Helm could not apply the release: an object was refused or a hook failed."""


class NotReady(PermanentError):
    """The preview's workloads did not become ready."""


class NamespaceForeign(PermanentError):
    """The namespace or release exists and is not this preview's: nothing was changed."""
