"""The identity of a message inside a queue, for the backends that can recognise an unsettled repeat."""

from __future__ import annotations

from uuid import uuid4

from prevue.model import Message


def message_identity(message: Message) -> str:
    """(GitHub host, repository, pull request, source, source id) as one string.

    A message whose source id must still be read from GitHub equals no other: two closes that do not say when they happened may be two.
    One that lacks the repository's id is known by the repository's name; a repeat that has it is then taken as another, which is allowed.
    """
    if not message.effective_source_id:
        return f"unknown/{uuid4().hex}"
    repository = message.repository_id or message.repo.lower()
    return f"{message.github_host}/{repository}/{message.pr_number}/{message.effective_source}/{message.effective_source_id}"
