-- What the sweeper needs: how far it has read, the previews that stand, and tokens above a restored cluster's.

CREATE TABLE cursor (
    name text PRIMARY KEY,
    value text NOT NULL,
    changed_at timestamptz DEFAULT clock_timestamp() NOT NULL
);
COMMENT ON TABLE cursor IS 'How far the sweeper has read: deliveries, comments of each repository. One that goes back only reads again.';

-- A hundred thousand tombstones cost the sweeper nothing; a heartbeat touches neither column.
CREATE INDEX preview_standing ON preview (github_host, repository_id, pr_number) WHERE state <> 'destroyed';
CREATE INDEX preview_expiring ON preview (expires_at) WHERE expires_at IS NOT NULL AND state <> 'destroyed';

-- Every token from now on is larger than a_above. ALTER SEQUENCE keeps nextval out until the commit, so that no token of another session
-- lies between the look and the step; nothing is locked where there is nothing to do. Deployers call it when they start.
CREATE FUNCTION prevue_raise_tokens(a_above bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF (SELECT last_value + is_called::integer FROM claim_token) > a_above THEN
        RETURN false;
    END IF;
    ALTER SEQUENCE claim_token INCREMENT BY 1;
    IF (SELECT last_value + is_called::integer FROM claim_token) > a_above THEN
        RETURN false;
    END IF;
    PERFORM setval('claim_token', a_above);
    RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION prevue_raise_tokens FROM PUBLIC;

-- T1 as before, but for one word: an expiry that a newer request superseded tells nobody, as a close does not.
CREATE OR REPLACE FUNCTION prevue_register_and_claim(
    a_host text, a_repository_id bigint, a_pr_number integer, a_source text, a_source_id text,
    a_installation_id bigint, a_action text, a_repo text, a_commit_sha text, a_idempotency_key text,
    a_comment_id bigint, a_requested_by text, a_message text, a_at timestamptz, a_rank smallint, a_tie bigint,
    a_cluster text, a_namespace text, a_releases text[],
    a_holder text, a_lease_seconds double precision, a_attempts_max integer, a_acknowledge_seconds double precision
) RETURNS TABLE (
    verdict text, delay double precision, request_id bigint, request_state text, token bigint, attempt integer, message text,
    order_at timestamptz, order_rank smallint, order_tie bigint, cluster text, namespace text, releases text[], preview_state text,
    live_sha text, live_digest text, live_request bigint, live_token bigint, url text, registered_at timestamptz
) LANGUAGE plpgsql VOLATILE AS $$
#variable_conflict use_column
DECLARE
    r request;
    p preview;
    the_request bigint;
    is_new boolean;
    is_busy boolean;
    is_changed boolean;
    the_time timestamptz;
BEGIN
    INSERT INTO request (
        github_host, repository_id, pr_number, source, source_id, installation_id, action, repo, commit_sha, idempotency_key,
        comment_id, requested_by, message, at, rank, tie
    ) VALUES (
        a_host, a_repository_id, a_pr_number, a_source, a_source_id, a_installation_id, a_action, a_repo, a_commit_sha,
        a_idempotency_key, a_comment_id, a_requested_by, a_message, a_at, a_rank, a_tie
    ) ON CONFLICT (github_host, repository_id, pr_number, source, source_id) DO NOTHING
    RETURNING id INTO the_request;
    is_new := FOUND;
    IF is_new THEN
        INSERT INTO ledger (request_id, event) VALUES (the_request, 'registered');
    ELSE
        SELECT id INTO STRICT the_request FROM request
         WHERE github_host = a_host AND repository_id = a_repository_id AND pr_number = a_pr_number
           AND source = a_source AND source_id = a_source_id;
    END IF;

    INSERT INTO preview (
        github_host, repository_id, pr_number, repo, cluster, namespace, releases, desired_at, desired_rank, desired_tie, desired_request
    ) VALUES (
        a_host, a_repository_id, a_pr_number, a_repo, a_cluster, a_namespace, a_releases, a_at, a_rank, a_tie, the_request
    ) ON CONFLICT DO NOTHING;  -- whichever unique index sees the other first when two are inserted at once
    SELECT * INTO STRICT p FROM preview
     WHERE github_host = a_host AND repository_id = a_repository_id AND pr_number = a_pr_number FOR UPDATE;
    SELECT * INTO STRICT r FROM request WHERE id = the_request FOR UPDATE;
    the_time := clock_timestamp();  -- after the lock, however long it was waited for

    -- What is desired is raised whatever the verdict will be.
    is_changed := (p.desired_at, p.desired_rank, p.desired_tie) < (r.at, r.rank, r.tie);
    IF is_changed THEN
        p.desired_at := r.at; p.desired_rank := r.rank; p.desired_tie := r.tie; p.desired_request := r.id;
    END IF;
    IF is_new AND p.repo <> a_repo THEN
        p.repo := a_repo; is_changed := true;
    END IF;

    is_busy := p.lease_until > the_time OR p.helm_deadline > the_time;
    IF r.state NOT IN ('waiting', 'claimed') THEN verdict := 'done';
    ELSIF is_busy AND p.holder_request = r.id THEN verdict := 'in_progress';
    ELSIF (r.at, r.rank, r.tie) < (p.desired_at, p.desired_rank, p.desired_tie) THEN verdict := 'superseded';
    ELSIF is_busy THEN verdict := 'in_progress';
    ELSIF r.not_before > the_time THEN
        verdict := 'later'; delay := extract(epoch FROM r.not_before - the_time);
    ELSIF r.action = 'deploy' AND r.attempts >= a_attempts_max THEN
        verdict := 'dead';
        p.holder := NULL; p.state := 'failed';
    ELSE
        verdict := 'granted';
        p.token := nextval('claim_token'); p.holder := a_holder; p.holder_request := r.id;
        p.lease_until := the_time + make_interval(secs => a_lease_seconds); p.helm_deadline := '-infinity';
    END IF;

    IF is_changed OR verdict IN ('granted', 'dead') THEN
        UPDATE preview
           SET desired_at = p.desired_at, desired_rank = p.desired_rank, desired_tie = p.desired_tie,
               desired_request = p.desired_request, repo = p.repo, state = p.state, token = p.token, holder = p.holder,
               holder_request = p.holder_request, lease_until = p.lease_until, helm_deadline = p.helm_deadline, changed_at = the_time
         WHERE github_host = a_host AND repository_id = a_repository_id AND pr_number = a_pr_number;
    END IF;

    IF verdict = 'granted' THEN
        UPDATE request SET state = 'claimed', token = p.token, attempts = request.attempts + 1, sent_at = the_time WHERE id = r.id
        RETURNING * INTO r;
        INSERT INTO ledger (request_id, token, event, details)
        VALUES (r.id, p.token, 'granted', jsonb_build_object('attempt', r.attempts, 'holder', a_holder));
    ELSIF verdict IN ('superseded', 'dead') THEN
        UPDATE request
           SET state = verdict, finished_at = the_time,
               reason = CASE verdict WHEN 'dead' THEN 'attempts_spent' ELSE 'newer_request' END
         WHERE id = r.id RETURNING * INTO r;
        INSERT INTO ledger (request_id, token, event, details)
        VALUES (r.id, r.token, 'finished', jsonb_build_object('outcome', r.state, 'reason', r.reason));
        -- Who hears of it: as `prevue.statestore.rules.is_told` says.
        IF r.source = 'comment' OR NOT (r.source IN ('sweep', 'close', 'expiry') OR (r.action = 'destroy' AND p.state = 'requested')) THEN
            INSERT INTO outbox (request_id, kind, installation_id, repository_id, pr_number, due_at)
            VALUES (r.id, 'status', r.installation_id, r.repository_id, r.pr_number, the_time)
            ON CONFLICT (request_id, kind) DO UPDATE
               SET version = outbox.version + 1, due_at = excluded.due_at, attempts = 0, error = '';
        END IF;
    END IF;
    -- A new command that stays open: its acknowledgement, should the App have skipped it.
    IF is_new AND r.source = 'comment' AND r.state IN ('waiting', 'claimed') THEN
        INSERT INTO outbox (request_id, kind, installation_id, repository_id, pr_number, due_at)
        VALUES (r.id, 'status', r.installation_id, r.repository_id, r.pr_number,
                the_time + make_interval(secs => a_acknowledge_seconds));
    END IF;

    request_id := r.id; request_state := r.state; token := p.token; attempt := r.attempts; message := r.message;
    order_at := r.at; order_rank := r.rank; order_tie := r.tie; registered_at := r.registered_at;
    cluster := p.cluster; namespace := p.namespace; releases := p.releases; preview_state := p.state; url := p.url;
    live_sha := p.live_sha; live_digest := p.live_digest; live_request := p.live_request; live_token := p.live_token;
    RETURN NEXT;
END $$;
