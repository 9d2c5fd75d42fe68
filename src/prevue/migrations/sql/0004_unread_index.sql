-- Nothing looks a request up by its idempotency key: it is what a message says, `request_identity` is what makes a request the same.
-- Each new request paid for this index, each change of its state again, and a claim wrote one page more to the log (ADR 9).
DROP INDEX request_by_idempotency_key;
