"""The local GitHub: an HTTP door, webhooks and pages around the state of `prevue.testing.github`.

`python -m prevue.local.github --help` runs it as a process. Apart from the state because this half has sockets, tasks
and a clock. Invariant: nothing is decided here; what GitHub would answer, the state answers.
"""
