"""Logs: one JSON object a line on standard error, with stable words to search for.

Every line has an `action` from the class below; a delivery's lines carry its `delivery_id`. Field names and actions are an
interface: alerts and people's searches hang on them. The last step over each finished line masks secrets, so that nothing that a
library puts into an exception gets past it. https://www.structlog.org/en/stable/performance.html
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any, BinaryIO, Final

import msgspec
import structlog

from prevue.config import LogSettings
from prevue.errors import ConfigError
from prevue.masking import mask_secrets


class Log(StrEnum):
    """The `action` of a log line: what was done or met."""

    DELIVERY = "delivery"
    """A webhook delivery was answered; with `result`, `reason`, `status`, `duration_ms`."""
    DELIVERY_FAILED = "delivery_failed"
    """A delivery met an unexpected error (500); with the traceback."""
    ACKNOWLEDGED = "acknowledged"
    """The acknowledgement of a command was written; `reaction` says whether 👀 was added."""
    ACKNOWLEDGEMENT_SKIPPED = "acknowledgement_skipped"
    """It was not written: already there, or the budget is spent; the deployer's outbox writes it."""
    ACKNOWLEDGEMENT_FAILED = "acknowledgement_failed"
    """GitHub refused it or did not answer; the deployer's outbox writes it."""
    REFUSAL_TOLD = "refusal_told"
    """The comment that says why a command was refused was written."""
    LISTENING = "listening"
    """A process accepts connections; with `address`."""
    STOPPING = "stopping"
    """A process was asked to stop and finishes what it has begun."""
    STOPPED = "stopped"
    """A process has ended in order."""
    LIBRARY = "library"
    """A line of a library, through Python's own logging; with `logger` and `text`."""


LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_encoder = msgspec.json.Encoder(enc_hook=str)

EventDict = MutableMapping[str, Any]


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """A logger; its first argument is a `Log` action (or, outside this package's processes, any stable word)."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def log_beside_output() -> None:
    """For a command whose standard output is its result: what it uses warns on standard error, in one line, masked."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, _masked_console(structlog.dev.ConsoleRenderer(colors=False))],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_names: structlog.BytesLogger(sys.stderr.buffer),
    )


def _action_first(_logger: object, _method: str, event: EventDict) -> EventDict:
    # structlog calls it "event", which is GitHub's word for something else here.
    return {"at": event.pop("timestamp"), "level": event.pop("level"), "action": event.pop("event"), **event}


def _render(_logger: object, _method: str, event: EventDict) -> bytes:
    return mask_secrets(_encoder.encode(event).decode()).encode()


def _masked_console(renderer: structlog.dev.ConsoleRenderer) -> structlog.typing.Processor:
    def render(logger: Any, method: str, event: EventDict) -> bytes:
        return mask_secrets(str(renderer(logger, method, event))).encode()

    return render


class _LibraryHandler(logging.Handler):
    """Python's own logging (asyncio, uvicorn, httpx2) as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger()
            level = record.levelname.lower() if record.levelname.lower() in LEVELS else "error"
            getattr(log, level)(Log.LIBRARY, logger=record.name, text=record.getMessage(), exc_info=record.exc_info or None)
        except Exception:  # noqa: BLE001 -- a log line must never take the process down; logging's own rule
            self.handleError(record)


def configure_logging(settings: LogSettings, *, file: BinaryIO | None = None) -> None:
    """Set up structlog and Python's logging for this process, once, before anything logs; `file` instead of standard error.

    Raises:
        ConfigError: `log.level` or `log.format` is none of the accepted values.
    """
    if settings.level not in LEVELS:
        raise ConfigError(f"log.level is {settings.level!r}; accepted: {', '.join(LEVELS)}")
    if settings.format not in ("json", "console"):
        raise ConfigError(f"log.format is {settings.format!r}; accepted: json, console")
    level = LEVELS[settings.level]
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.format == "json":
        processors += [structlog.processors.format_exc_info, _action_first, _render]
    else:
        processors += [_masked_console(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(file or sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_LibraryHandler()]
    # Libraries tell their ordinary doings at INFO (each HTTP request, say); our own lines say what matters.
    root.setLevel(max(level, logging.WARNING))
