-- Tables of queue and statestore (protocol section 1). All times are the database's, from clock_timestamp():
-- now() is the transaction's start, older than the row lock that it waited for. '-infinity' is "over" or "none".

CREATE SEQUENCE claim_token;
COMMENT ON SEQUENCE claim_token IS
    'Fencing tokens of all previews: none is ever used twice. After a restore: setval above the highest annotation in the cluster.';

CREATE TABLE request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    github_host text NOT NULL,
    repository_id bigint NOT NULL,
    pr_number integer NOT NULL,
    source text NOT NULL,
    source_id text NOT NULL,
    installation_id bigint NOT NULL,
    action text NOT NULL,
    repo text NOT NULL,
    commit_sha text NOT NULL,
    values_digest text DEFAULT '' NOT NULL,
    idempotency_key text NOT NULL,
    comment_id bigint NOT NULL,
    requested_by text NOT NULL,
    message text NOT NULL,
    at timestamptz NOT NULL,
    rank smallint NOT NULL,
    tie bigint NOT NULL,
    state text DEFAULT 'waiting' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    not_before timestamptz DEFAULT '-infinity' NOT NULL,
    token bigint,
    reason text DEFAULT '' NOT NULL,
    error text DEFAULT '' NOT NULL,
    url text DEFAULT '' NOT NULL,
    registered_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    sent_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    finished_at timestamptz,
    CONSTRAINT request_identity UNIQUE (github_host, repository_id, pr_number, source, source_id),
    CONSTRAINT request_source CHECK (source IN ('comment', 'close', 'push', 'replay', 'sweep', 'expiry')),
    CONSTRAINT request_action CHECK (action IN ('deploy', 'destroy')),
    CONSTRAINT request_state CHECK (
        state IN ('waiting', 'claimed', 'deployed', 'destroyed', 'superseded', 'rejected', 'failed', 'dead')
    ),
    CONSTRAINT request_attempts CHECK (attempts >= 0)
);
COMMENT ON COLUMN request.message IS 'The message as it was first registered: a repeat never changes what is carried out.';
COMMENT ON COLUMN request.token IS 'Of its last claim.';
COMMENT ON COLUMN request.sent_at IS 'When a message was last sent or received for it; the sweeper sends again after a quiet time.';
CREATE INDEX request_by_idempotency_key ON request (idempotency_key);
-- The two partial indexes hold only what is not terminal: a million past requests cost them nothing.
CREATE INDEX request_open_by_sent_at ON request (sent_at) WHERE state IN ('waiting', 'claimed');
CREATE INDEX request_open_by_preview ON request (github_host, repository_id, pr_number) WHERE state IN ('waiting', 'claimed');
CREATE INDEX request_dead ON request (finished_at) WHERE state = 'dead';

CREATE TABLE preview (
    github_host text NOT NULL,
    repository_id bigint NOT NULL,
    pr_number integer NOT NULL,
    repo text NOT NULL,
    cluster text NOT NULL,
    namespace text NOT NULL,
    releases text[] NOT NULL,
    desired_at timestamptz NOT NULL,
    desired_rank smallint NOT NULL,
    desired_tie bigint NOT NULL,
    desired_request bigint NOT NULL,
    state text DEFAULT 'requested' NOT NULL,
    live_sha text,
    live_digest text,
    live_request bigint,
    live_token bigint,
    token bigint,
    holder text,
    holder_request bigint,
    lease_until timestamptz DEFAULT '-infinity' NOT NULL,
    helm_deadline timestamptz DEFAULT '-infinity' NOT NULL,
    url text DEFAULT '' NOT NULL,
    expires_at timestamptz,
    changed_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT preview_pkey PRIMARY KEY (github_host, repository_id, pr_number),
    CONSTRAINT preview_state CHECK (state IN ('requested', 'deploying', 'ready', 'failed', 'destroying', 'destroyed')),
    CONSTRAINT preview_namespace UNIQUE (cluster, namespace)
) WITH (fillfactor = 70);  -- room on the page: a heartbeat rewrites the row without touching an index
COMMENT ON COLUMN preview.repo IS 'owner/name as last seen; the identity is the numeric id.';
COMMENT ON COLUMN preview.live_sha IS 'NULL: nothing is live, or it is unknown what is.';
COMMENT ON COLUMN preview.live_token IS 'The claim under which the live release was made; its labels carry it.';
CREATE INDEX preview_by_repo ON preview (lower(repo), pr_number);

CREATE TABLE outbox (
    request_id bigint NOT NULL REFERENCES request (id),
    kind text NOT NULL,
    installation_id bigint NOT NULL,
    repository_id bigint NOT NULL,
    pr_number integer NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    sent_version integer DEFAULT 0 NOT NULL,
    due_at timestamptz NOT NULL,
    verify_at timestamptz,
    comment_id bigint DEFAULT 0 NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    error text DEFAULT '' NOT NULL,
    CONSTRAINT outbox_pkey PRIMARY KEY (request_id, kind),
    CONSTRAINT outbox_versions CHECK (sent_version <= version)
);
CREATE INDEX outbox_due ON outbox (due_at, installation_id) WHERE sent_version < version;
CREATE INDEX outbox_verify ON outbox (verify_at, installation_id) WHERE sent_version = version AND verify_at IS NOT NULL;

CREATE TABLE lease (
    name text PRIMARY KEY,
    holder text NOT NULL,
    token bigint DEFAULT 1 NOT NULL,
    until timestamptz NOT NULL
);

CREATE TABLE ledger (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id bigint NOT NULL,
    token bigint,
    event text NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL,
    details jsonb DEFAULT '{}' NOT NULL
);
CREATE INDEX ledger_by_request ON ledger (request_id);

CREATE TABLE content_write (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    installation_id bigint NOT NULL,
    at timestamptz DEFAULT clock_timestamp() NOT NULL
);
CREATE INDEX content_write_by_installation ON content_write (installation_id, at);

CREATE TABLE queue_message (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    identity text NOT NULL,
    body text NOT NULL,
    enqueued_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    available_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    receipt uuid,
    deliveries integer DEFAULT 0 NOT NULL,
    CONSTRAINT queue_message_identity UNIQUE (identity)
) WITH (fillfactor = 70);
COMMENT ON TABLE queue_message IS 'Unsettled messages; a settled one is deleted. The role of the GitHub App may only insert here.';
CREATE INDEX queue_message_available ON queue_message (available_at, id);

CREATE TABLE queue_rejected (
    id bigint PRIMARY KEY,
    identity text NOT NULL,
    body text NOT NULL,
    reason text NOT NULL,
    enqueued_at timestamptz NOT NULL,
    rejected_at timestamptz DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE queue_rejected IS 'Messages that no deployer can read, set aside with the reason.';
