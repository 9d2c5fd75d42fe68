"""What is masked, and what is not."""

from __future__ import annotations

import pytest

from prevue.masking import cut, without_secrets


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer SECRETSECRET",
        "authorization: basic SECRETSECRET",
        "password=SECRETSECRET",
        "DB_PASSWORD: 'SECRETSECRET'",
        '{"api_key": "SECRETSECRET"}',
        "postgresql://user:SECRETSECRET@host/db",
        "token: SECRETSECRET",
        "AWS_SECRET_ACCESS_KEY=SECRETSECRET",
        "client-secret = SECRETSECRET",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRETSECRET\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nSECRETSECRET",
        "ghs_SECRETSECRETSECRET",
        "github_pat_SECRETSECRETSECRET",
        "eyJSECRETSECRET.SECRETSECRET.SECRETSECRET",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    assert "SECRETSECRET" not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "denied request: stale fencing token",
        'deployments.apps "x" is forbidden: exceeded quota: q',
        "Error: template: c/templates/a.yaml:3:12: nil pointer evaluating interface {}.tag",
        "image.tag is the commit of the image",
        "listening on http://0.0.0.0:8080/",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_the_end_of_a_text_stays() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcdef", 3) == "…ef"
