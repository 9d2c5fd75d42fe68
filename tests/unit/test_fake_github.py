"""The fake GitHub's rules: who may ask, limits, faults, pages of lists, times, permissions, deliveries."""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prevue.testing.github import ControlError, FakeGitHub, Fault, Limits, Request, Response
from prevue.testing.github.app_key import AppKey

START = datetime(2026, 3, 1, 12, 0, 0, 900_000, tzinfo=UTC)
SECRET = "a webhook secret"
COMMENTS = "/repos/acme/hello/issues/1/comments"


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@pytest.fixture(scope="module")
def key() -> AppKey:
    return AppKey.generate()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def github(clock: Clock, key: AppKey) -> FakeGitHub:
    github = FakeGitHub(now=clock, public_key=key.public_pem, app_id=7, webhook_secret=SECRET)
    github.add_repository("acme/hello")
    github.set_permission("acme/hello", "writer", "write")
    github.open_pull_request("acme/hello", "writer")
    return github


def token(github: FakeGitHub, **narrowed: Any) -> str:
    installation = github.installation_of(github.repository("acme/hello"))
    assert installation is not None
    return github.new_token(installation, **narrowed).value


def ask(github: FakeGitHub, method: str, path: str, body: Any = None, *, credential: str = "", query: str = "") -> Response:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    content = b"" if body is None else json.dumps(body).encode()
    return github.handle(Request(method=method, path=path, query=query, headers=headers, body=content))


def message(response: Response) -> str:
    return str(json.loads(response.body)["message"])


# -- credentials --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("issuer", [7, "7", "Iv23liprevuelocal000"])
def test_app_is_known_by_its_id_or_client_id(github: FakeGitHub, key: AppKey, issuer: int | str) -> None:
    response = ask(github, "GET", "/app", credential=key.jwt(issuer=issuer, now=START))
    assert (response.status, json.loads(response.body)["slug"]) == (200, "prevue-local")


@pytest.mark.parametrize(
    ("wrong", "status", "said"),
    [
        pytest.param({"seconds": 700}, 401, "too far in the future", id="expires after more than ten minutes"),
        pytest.param({"seconds": -1}, 401, "'Expiration time' claim", id="expired"),
        pytest.param({"issued_seconds_ago": -60}, 401, "'Issued at' claim", id="issued in the future"),
        pytest.param({"exp": "soon"}, 401, "'Expiration time' claim", id="exp is no number"),
        pytest.param({"iat": None}, 401, "'Issued at' claim", id="without iat"),
        pytest.param({"issuer": 8}, 404, "Integration not found", id="another App"),
    ],
)
def test_jwt_that_github_refuses_is_refused(github: FakeGitHub, key: AppKey, wrong: dict[str, Any], status: int, said: str) -> None:
    jwt = key.jwt(**{"issuer": 7, "now": START, **wrong})
    response = ask(github, "GET", "/app", credential=jwt)
    assert response.status == status
    assert said in message(response)


def test_jwt_of_another_key_or_algorithm_is_refused(github: FakeGitHub, key: AppKey) -> None:
    other = AppKey.generate().jwt(issuer=7, now=START)
    unsigned = ".".join(["eyJhbGciOiJub25lIn0", key.jwt(issuer=7, now=START).split(".")[1], ""])
    for jwt in (other, unsigned, "a.b.c", ".."):
        response = ask(github, "GET", "/app", credential=jwt)
        assert (response.status, message(response)) == (401, "A JSON web token could not be decoded")


def test_installation_token_expires_after_an_hour(github: FakeGitHub, clock: Clock, key: AppKey) -> None:
    app = key.jwt(issuer=7, now=START)
    installation = json.loads(ask(github, "GET", "/repos/acme/hello/installation", credential=app).body)
    made = json.loads(ask(github, "POST", f"/app/installations/{installation['id']}/access_tokens", credential=app).body)
    assert made["token"].startswith("ghs_")
    assert made["expires_at"] == "2026-03-01T13:00:00Z"
    assert ask(github, "POST", COMMENTS, {"body": "hello"}, credential=made["token"]).status == 201
    clock.forward(minutes=59, seconds=59)
    assert ask(github, "POST", COMMENTS, {"body": "hello"}, credential=made["token"]).status == 201
    clock.forward(seconds=1)
    refused = ask(github, "GET", "/repos/acme/hello", credential=made["token"])
    assert (refused.status, message(refused)) == (401, "Bad credentials")


def test_token_reaches_no_further_than_it_was_made_for(github: FakeGitHub) -> None:
    github.add_repository("acme/other")
    github.add_repository("umbrella/hello")
    github.open_pull_request("umbrella/hello", "writer")
    reading = token(github, permissions={"issues": "read", "metadata": "read"})
    elsewhere = token(github, repository_ids=frozenset([github.repository("acme/other").id]))
    for credential in (reading, elsewhere):
        assert ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential).status == 403
    assert ask(github, "POST", "/repos/umbrella/hello/issues/1/comments", {"body": "x"}, credential=token(github)).status == 403
    assert ask(github, "GET", COMMENTS, credential=elsewhere).status == 200


def test_token_cannot_ask_for_more_than_the_app_has(github: FakeGitHub, key: AppKey) -> None:
    installation = next(iter(github.installations))
    path, app = f"/app/installations/{installation}/access_tokens", key.jwt(issuer=7, now=START)
    assert ask(github, "POST", path, {"permissions": {"contents": "write"}}, credential=app).status == 422
    assert ask(github, "POST", path, {"repositories": ["nothing"]}, credential=app).status == 422


def test_reading_needs_no_token_and_writing_does(github: FakeGitHub) -> None:
    assert ask(github, "GET", "/repos/acme/hello/pulls/1").status == 200
    assert ask(github, "GET", COMMENTS).status == 200
    assert ask(github, "POST", COMMENTS, {"body": "x"}).status == 401
    assert ask(github, "GET", "/repos/acme/hello/collaborators/writer/permission").status == 401
    assert ask(github, "GET", "/app").status == 401


# -- permissions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "permission"),
    [("admin", "admin"), ("maintain", "write"), ("write", "write"), ("triage", "read"), ("read", "read"), ("none", "none")],
)
def test_permission_is_the_coarse_word_and_role_name_the_exact_one(github: FakeGitHub, role: str, permission: str) -> None:
    github.set_permission("acme/hello", "somebody", role)
    path = "/repos/acme/hello/collaborators/somebody/permission"
    body = json.loads(ask(github, "GET", path, credential=token(github)).body)
    assert (body["permission"], body["role_name"]) == (permission, role)


def test_stranger_reads_a_public_repository_and_a_nobody_is_not_found(github: FakeGitHub) -> None:
    github.add_user("stranger")
    path = "/repos/acme/hello/collaborators/{}/permission"
    stranger = ask(github, "GET", path.format("stranger"), credential=token(github))
    assert json.loads(stranger.body)["permission"] == "read"
    assert ask(github, "GET", path.format("nobody"), credential=token(github)).status == 404


# -- limits -------------------------------------------------------------------------------------------------------------


def test_content_writes_are_limited_in_a_sliding_minute(github: FakeGitHub, clock: Clock) -> None:
    github.rate_limits.limits = Limits(content_per_minute=3, content_per_hour=None)
    credential = token(github)
    first = json.loads(ask(github, "POST", COMMENTS, {"body": "1"}, credential=credential).body)
    clock.forward(seconds=20)
    one = f"/repos/acme/hello/issues/comments/{first['id']}"
    assert ask(github, "PATCH", one, {"body": "2"}, credential=credential).status == 200
    assert ask(github, "POST", f"{one}/reactions", {"content": "eyes"}, credential=credential).status == 201
    refused = ask(github, "POST", COMMENTS, {"body": "4"}, credential=credential)
    assert refused.status == 403
    assert "secondary rate limit" in message(refused)
    assert refused.headers["retry-after"] == "40"
    assert ask(github, "GET", COMMENTS, credential=credential).status == 200
    clock.forward(seconds=40)
    assert ask(github, "POST", COMMENTS, {"body": "4"}, credential=credential).status == 201
    assert ask(github, "POST", COMMENTS, {"body": "5"}, credential=credential).status == 403


def test_content_writes_are_limited_in_a_sliding_hour(github: FakeGitHub, clock: Clock) -> None:
    github.rate_limits.limits = Limits(content_per_minute=None, content_per_hour=2)
    credential = token(github)
    for _ in range(2):
        assert ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential).status == 201
        clock.forward(minutes=10)
    refused = ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential)
    assert (refused.status, refused.headers["retry-after"]) == (403, str(40 * 60))
    clock.forward(minutes=40)
    assert ask(github, "POST", COMMENTS, {"body": "x"}, credential=token(github)).status == 201


def test_default_limits_are_githubs(github: FakeGitHub) -> None:
    credential = token(github)
    statuses = [ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential).status for _ in range(81)]
    assert statuses == [201] * 80 + [403]


def test_people_are_not_limited(github: FakeGitHub) -> None:
    github.rate_limits.limits = Limits(content_per_minute=0)
    assert github.comment("acme/hello", 1, "writer", "/preview").body == "/preview"


def test_primary_limit_is_reported_and_refuses_when_nothing_is_left(github: FakeGitHub, clock: Clock) -> None:
    github.rate_limits.limits = Limits(requests_per_hour=2)
    credential = token(github)
    first = ask(github, "GET", "/repos/acme/hello", credential=credential)
    assert {name: first.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "used", "resource")} == {
        "limit": "2",
        "remaining": "1",
        "used": "1",
        "resource": "core",
    }
    assert ask(github, "GET", "/rate_limit", credential=credential).status == 200
    assert ask(github, "GET", "/repos/acme/hello", credential=credential).status == 200
    refused = ask(github, "GET", "/repos/acme/hello", credential=credential)
    assert (refused.status, refused.headers["x-ratelimit-remaining"]) == (403, "0")
    clock.forward(hours=1)
    assert ask(github, "GET", "/repos/acme/hello", credential=token(github)).status == 200


# -- faults -------------------------------------------------------------------------------------------------------------


def test_fault_before_the_work_leaves_it_undone(github: FakeGitHub) -> None:
    github.faults.append(Fault(path="/repos/acme/hello/issues", method="POST", status=500, times=1))
    credential = token(github)
    assert ask(github, "GET", COMMENTS).status == 200
    assert ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential).status == 500
    assert json.loads(ask(github, "GET", COMMENTS).body) == []
    assert ask(github, "POST", COMMENTS, {"body": "x"}, credential=credential).status == 201


def test_fault_after_the_work_loses_only_the_answer(github: FakeGitHub) -> None:
    github.faults.append(Fault(path="/", method="POST", status=502, times=1, after=True, delay_seconds=1.5))
    response = ask(github, "POST", COMMENTS, {"body": "x"}, credential=token(github))
    assert (response.status, response.delay_seconds) == (502, 1.5)
    assert len(json.loads(ask(github, "GET", COMMENTS).body)) == 1


@pytest.mark.parametrize("after", [False, True])
def test_fault_without_a_status_never_answers(github: FakeGitHub, after: bool) -> None:
    github.faults.append(Fault(path="/repos", status=0, times=1, delay_seconds=30, after=after, method="POST"))
    response = ask(github, "POST", COMMENTS, {"body": "x"}, credential=token(github))
    assert (response.status, response.delay_seconds) == (0, 30)
    assert len(json.loads(ask(github, "GET", COMMENTS).body)) == after


def test_fault_with_a_good_status_is_only_slow(github: FakeGitHub) -> None:
    github.faults.append(Fault(path="/repos", status=200, times=2, delay_seconds=0.2))
    for delay in (0.2, 0.2, 0.0):
        response = ask(github, "GET", "/repos/acme/hello")
        assert (response.status, response.delay_seconds) == (200, delay)


def test_fault_429_says_when_to_come_back(github: FakeGitHub) -> None:
    github.faults.append(Fault(path="/repos", status=429, times=1))
    response = ask(github, "GET", "/repos/acme/hello")
    assert (response.status, response.headers["retry-after"]) == (429, "1")
    github.faults.append(Fault(path="/repos", status=403, times=1, message="Stop it", headers={"retry-after": "9"}))
    response = ask(github, "GET", "/repos/acme/hello")
    assert (message(response), response.headers["retry-after"]) == ("Stop it", "9")


# -- comments, reactions, lists -----------------------------------------------------------------------------------------


def test_same_reaction_twice_is_one(github: FakeGitHub) -> None:
    comment, credential = github.comment("acme/hello", 1, "writer", "/preview"), token(github)
    path = f"/repos/acme/hello/issues/comments/{comment.id}/reactions"
    first = ask(github, "POST", path, {"content": "eyes"}, credential=credential)
    second = ask(github, "POST", path, {"content": "eyes"}, credential=credential)
    assert (first.status, second.status) == (201, 200)
    assert json.loads(first.body)["id"] == json.loads(second.body)["id"]
    assert len(json.loads(ask(github, "GET", path).body)) == 1
    assert ask(github, "POST", path, {"content": "tada"}, credential=credential).status == 422


def test_lists_come_in_pages_with_links(github: FakeGitHub) -> None:
    for at in range(5):
        github.comment("acme/hello", 1, "writer", f"comment {at}")
    seen: list[str] = []
    query, pages = "per_page=2", 0
    links: dict[str, str]
    while True:
        response = ask(github, "GET", COMMENTS, query=query)
        seen += [comment["body"] for comment in json.loads(response.body)]
        pages += 1
        links = {}
        for link in filter(None, response.headers.get("link", "").split(", ")):
            target, _, relation = link.partition("; ")
            links[relation] = target
        if 'rel="next"' not in links:
            break
        assert f"{query.split('&', maxsplit=1)[0]}&page=3>" in links['rel="last"']
        query = links['rel="next"'].strip("<>").split("?")[1]
    assert (pages, seen) == (3, [f"comment {at}" for at in range(5)])
    assert set(links) == {'rel="prev"', 'rel="first"'}


def test_comments_since_a_time_are_those_updated_since(github: FakeGitHub, clock: Clock) -> None:
    old, young = (github.comment("acme/hello", 1, "writer", body) for body in ("old", "young"))
    clock.forward(minutes=5)
    github.edit_comment("acme/hello", old.id, "edited")
    for path in (COMMENTS, "/repos/acme/hello/issues/comments"):
        found = json.loads(ask(github, "GET", path, query="since=2026-03-01T12%3A01%3A00Z").body)
        assert [comment["id"] for comment in found] == [old.id]
    assert young.updated_at == young.created_at
    assert ask(github, "GET", COMMENTS, query="since=yesterday").status == 422


def test_pull_requests_are_listed_by_state_newest_first(github: FakeGitHub) -> None:
    github.open_pull_request("acme/hello", "writer")
    github.open_issue("acme/hello", "writer")
    github.close_pull_request("acme/hello", 1)

    def numbers(query: str) -> list[int]:
        return [pull["number"] for pull in json.loads(ask(github, "GET", "/repos/acme/hello/pulls", query=query).body)]

    assert (numbers(""), numbers("state=closed"), numbers("state=all")) == ([2], [1], [2, 1])


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"body": 5}', b"{}", b'{"body": "  "}', b'{"body": "%s"}' % (b"x" * 65_537)])
def test_wrong_comment_body_is_refused_and_changes_nothing(github: FakeGitHub, body: bytes) -> None:
    headers = {"authorization": f"token {token(github)}"}
    response = github.handle(Request(method="POST", path=COMMENTS, headers=headers, body=body))
    assert response.status in (400, 422)
    assert json.loads(ask(github, "GET", COMMENTS).body) == []


def test_our_comment_is_the_bots_and_made_through_the_app(github: FakeGitHub) -> None:
    written = json.loads(ask(github, "POST", COMMENTS, {"body": "x"}, credential=token(github)).body)
    bot = json.loads(ask(github, "GET", "/users/prevue-local%5Bbot%5D").body)
    assert (written["user"]["id"], written["user"]["type"]) == (bot["id"], "Bot")
    assert written["performed_via_github_app"]["id"] == 7


def test_etag_saves_the_body(github: FakeGitHub) -> None:
    first = ask(github, "GET", "/repos/acme/hello")
    request = Request(method="GET", path="/repos/acme/hello", headers={"If-None-Match": first.headers["etag"]})
    again = github.handle(request)
    assert (again.status, again.body) == (304, b"")


def test_repository_is_found_by_its_number(clock: Clock) -> None:
    github = FakeGitHub(now=clock, repository_id_start=5_000)
    assert github.add_repository("acme/hello").id == 5_000
    assert json.loads(ask(github, "GET", "/repositories/5000").body)["full_name"] == "acme/hello"
    assert ask(github, "GET", "/repositories/5001").status == 404
    assert ask(github, "GET", "/repositories/5000/pulls").status == 200


# -- pull requests and time ---------------------------------------------------------------------------------------------


def test_times_are_whole_seconds_in_utc(github: FakeGitHub, clock: Clock) -> None:
    clock.forward(seconds=1.5)
    github.close_pull_request("acme/hello", 1)
    pull = json.loads(ask(github, "GET", "/repos/acme/hello/pulls/1").body)
    assert pull["created_at"] == "2026-03-01T12:00:00Z"
    assert pull["closed_at"] == pull["updated_at"] == "2026-03-01T12:00:02Z"


def test_push_moves_the_head_and_an_earlier_commit_is_a_force_push_back(github: FakeGitHub) -> None:
    _, _, pull = github.pull("acme/hello", 1)
    first = pull.head_sha
    github.push("acme/hello", 1, sha="b" * 40)
    github.push("acme/hello", 1, sha=first)
    assert [commit.sha for commit in pull.commits] == [first]
    payload = json.loads(github.webhooks.log()[0].payload)
    assert (payload["action"], payload["before"], payload["after"]) == ("synchronize", "b" * 40, first)


def test_fork_is_a_repository_of_its_author(github: FakeGitHub) -> None:
    issue = github.open_pull_request("acme/hello", "outsider", fork=True)
    head = json.loads(ask(github, "GET", f"/repos/acme/hello/pulls/{issue.number}").body)["head"]["repo"]
    assert (head["full_name"], head["fork"]) == ("outsider/hello", True)
    assert head["id"] != github.repository("acme/hello").id


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(lambda github: github.push("acme/hello", 1, sha="main"), id="sha is no sha"),
        pytest.param(lambda github: github.push("acme/hello", 9), id="no such pull request"),
        pytest.param(lambda github: github.reopen_pull_request("acme/hello", 1), id="open already"),
        pytest.param(lambda github: github.comment("acme/hello", 1, "writer", ""), id="blank comment"),
        pytest.param(lambda github: github.comment("acme/hello", 1, "a b", "x"), id="impossible login"),
        pytest.param(lambda github: github.set_permission("acme/hello", "writer", "owner"), id="no such role"),
        pytest.param(lambda github: github.open_pull_request("acme/nothing", "writer"), id="no such repository"),
        pytest.param(lambda github: github.add_repository("acme/hello"), id="repository exists"),
    ],
)
def test_impossible_operation_is_refused_and_nobody_is_told(github: FakeGitHub, operation: Any) -> None:
    before = len(github.webhooks.log())
    with pytest.raises(ControlError):
        operation(github)
    assert len(github.webhooks.log()) == before


# -- deliveries ---------------------------------------------------------------------------------------------------------


def test_delivery_is_signed_over_its_exact_bytes(github: FakeGitHub) -> None:
    github.comment("acme/hello", 1, "writer", "/preview")
    delivery = github.webhooks.take()[-1]
    expected = hmac.digest(SECRET.encode(), delivery.payload, "sha256").hex()
    assert delivery.headers["X-Hub-Signature-256"] == f"sha256={expected}"
    assert delivery.headers["X-GitHub-Event"] == "issue_comment"
    assert delivery.headers["X-GitHub-Delivery"] == delivery.guid
    assert json.loads(delivery.payload)["installation"]["id"] in github.installations
    assert github.webhooks.take() == []


def test_redelivery_has_the_same_guid_and_bytes_and_an_entry_of_its_own(github: FakeGitHub) -> None:
    first = github.webhooks.take()[0]
    again = github.webhooks.redeliver(first.guid)
    assert (again.guid, again.payload, again.headers, again.redelivery) == (first.guid, first.payload, first.headers, True)
    assert again.id != first.id
    assert github.webhooks.take() == [again]
    assert github.webhooks.log()[:2] == [again, first]
    with pytest.raises(KeyError):
        github.webhooks.redeliver("nothing")


def test_repository_without_the_app_tells_nobody(github: FakeGitHub) -> None:
    github.add_repository("acme/quiet", installed=False)
    github.webhooks.take()
    github.open_pull_request("acme/quiet", "writer")
    assert github.webhooks.take() == []


def test_same_seed_and_times_give_the_same_bytes(key: AppKey) -> None:
    def story() -> list[bytes]:
        github = FakeGitHub(now=lambda: START, public_key=key.public_pem, seed=4)
        github.add_repository("acme/hello")
        github.open_pull_request("acme/hello", "writer")
        github.comment("acme/hello", 1, "writer", "/preview")
        return [delivery.payload + delivery.guid.encode() for delivery in github.webhooks.log()]

    assert story() == story()
