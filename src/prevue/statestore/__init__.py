"""The statestore: requests, previews, claims, outbox."""
