"""Headers and signature of a delivery."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prevue.github_app.delivery import Delivery, Headers, InvalidSignature, MalformedDelivery, read_headers, verify

SECRET = b"It's a Secret to Everybody"
GOOD = {
    b"x-hub-signature-256": b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
    b"x-github-event": b"issue_comment",
    b"x-github-delivery": b"72d3162e-cc78-11e3-81ab-4c9367dc0958",
    b"content-type": b"application/json",
}


def test_the_documentations_own_vector_is_accepted() -> None:
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation"""
    delivery = verify(read_headers(GOOD), b"Hello, World!", [SECRET])
    assert delivery == Delivery(event="issue_comment", delivery_id="72d3162e-cc78-11e3-81ab-4c9367dc0958", body=b"Hello, World!")


def test_either_of_two_secrets_is_accepted_while_one_is_rotated() -> None:
    headers = read_headers(GOOD)
    for secrets in ([b"new", SECRET], [SECRET, b"old"]):
        assert verify(headers, b"Hello, World!", secrets).body == b"Hello, World!"


@pytest.mark.parametrize(
    ("body", "secrets"), [(b"Hello, World?", [SECRET]), (b"Hello, World!", [b"other", b"another"]), (b"Hello, World!", [])]
)
def test_another_body_or_secret_is_refused(body: bytes, secrets: list[bytes]) -> None:
    with pytest.raises(InvalidSignature):
        verify(read_headers(GOOD), body, secrets)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"sha256=",
        b"sha256=zz",
        b"sha1=" + b"a" * 40,
        b"sha256=" + b"A" * 64,
        GOOD[b"x-hub-signature-256"] + b"0",
        b"sha256=\xff" + b"a" * 63,
    ],
)
def test_a_signature_of_another_form_is_refused_before_the_body_is_read(signature: bytes) -> None:
    with pytest.raises(InvalidSignature):
        read_headers({**GOOD, b"x-hub-signature-256": signature, b"x-hub-signature": b"sha1=" + b"a" * 40})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-github-event", b""),
        (b"x-github-event", b"Issue Comment"),
        (b"x-github-delivery", b""),
        (b"x-github-delivery", b'"><script>'),
        (b"content-type", b""),
        (b"content-type", b"application/x-www-form-urlencoded"),
    ],
)
def test_missing_and_strange_headers_are_malformed(name: bytes, value: bytes) -> None:
    with pytest.raises(MalformedDelivery):
        read_headers({**GOOD, name: value})


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=40), st.integers(0, 63))
def test_one_changed_digit_is_refused(body: bytes, secret: bytes, at: int) -> None:
    digest = hmac.digest(secret, body, "sha256").hex()
    good = Headers(event="ping", delivery_id="1", signature=f"sha256={digest}")
    assert verify(good, body, [secret]).body == body
    changed = digest[:at] + ("0" if digest[at] != "0" else "1") + digest[at + 1 :]
    with pytest.raises(InvalidSignature):
        verify(Headers(event="ping", delivery_id="1", signature=f"sha256={changed}"), body, [secret])
