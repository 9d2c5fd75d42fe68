"""Secrets in log lines."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from prevue.config import LogSettings
from prevue.errors import ConfigError
from prevue.masking import foreign_text, mask_secrets, without_secrets
from prevue.telemetry import Log, configure_logging, get_logger

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc=\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("token ghs_0123456789abcdefghij end", "token *** end"),
        ("ghs_123456_eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxIn0.c2ln", "***"),
        ("github_pat_11ABCDEFG0123456789", "***"),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer ***"),
        ("jwt eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxIn0.c2lnbmF0dXJl", "jwt ***"),
        ("postgresql://user:hunter2@db/prevue", "postgresql://user:***@db/prevue"),
        ("postgresql://user:p@ss@db/prevue", "postgresql://user:***@db/prevue"),
        ("POSTGRES://u:p:q@h", "POSTGRES://u:***@h"),
        (f"key {PEM} end", "key *** end"),
        (PEM.replace("\n", "\\n"), "***"),
        (PEM[:60], "***"),
        ("https://github.com/acme/hello:latest and a@b", "https://github.com/acme/hello:latest and a@b"),
        ("claim token 17 of bearer", "claim token 17 of bearer"),
        ("plain", "plain"),
    ],
)
def test_secrets_are_masked_by_their_shape(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


def test_foreign_text_is_one_short_line() -> None:
    assert foreign_text("a\nb\x00c\u202ed") == "a b c d"
    assert foreign_text("x" * 400) == "x" * 299 + "…"


@pytest.fixture
def out() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture(autouse=True)
def logging_as_before() -> object:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_a_line_is_one_json_object_with_action_first(out: io.BytesIO) -> None:
    configure_logging(LogSettings(), file=out)
    get_logger().info(Log.DELIVERY, delivery_id="d", result="ignored", event_time=1.5)
    get_logger().debug(Log.DELIVERY, delivery_id="unseen")
    line = json.loads(out.getvalue())
    assert list(line) == ["at", "level", "action", "delivery_id", "result", "event_time"]
    assert (line["action"], line["level"]) == ("delivery", "info")


def test_secrets_in_fields_and_tracebacks_do_not_reach_the_line(out: io.BytesIO) -> None:
    configure_logging(LogSettings(), file=out)

    def fail() -> None:
        raise RuntimeError(f"cannot connect to postgresql://user:hunter2@db with {PEM}")

    try:
        fail()
    except RuntimeError:
        get_logger().exception(Log.DELIVERY_FAILED, detail="Bearer abcdefghijklmnop")
    text = out.getvalue().decode()
    assert "RuntimeError" in json.loads(text)["exception"]
    for secret in ("hunter2", "MIIEow", "abcdefghijklmnop"):
        assert secret not in text


def test_libraries_lines_become_ours(out: io.BytesIO) -> None:
    configure_logging(LogSettings(), file=out)
    logging.getLogger("httpx2").info("HTTP Request: unseen")
    logging.getLogger("asyncio").error("Task exception: %s", "ghs_0123456789abcdefghij")
    line = json.loads(out.getvalue())
    assert (line["action"], line["logger"], line["text"]) == ("library", "asyncio", "Task exception: ***")


def test_console_lines_are_masked_too(out: io.BytesIO) -> None:
    configure_logging(LogSettings(format="console", level="debug"), file=out)
    get_logger().debug(Log.LISTENING, address="postgresql://user:hunter2@db")
    assert b"hunter2" not in out.getvalue()
    assert b"listening" in out.getvalue()


@pytest.mark.parametrize("settings", [LogSettings(level="loud"), LogSettings(format="xml")])
def test_wrong_settings_name_the_accepted_values(settings: LogSettings) -> None:
    with pytest.raises(ConfigError, match="accepted: "):
        configure_logging(settings)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("text", ["x" * 65_536, "token" * 13_000, "a." * 32_768 + "://", "token=" * 10_000])
def test_long_words_take_no_longer_than_their_length(text: str) -> None:
    """Text from outside may be one long word; masking it must not stop the event loop for minutes."""
    assert without_secrets(text) == without_secrets(without_secrets(text))
