"""Structured logs: one line an event, with the request's and the job's id."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from mpsearch_api.settings import Settings

__all__ = ["configure_logs", "get"]

_CHATTY = ("alembic", "uvicorn.error", "asyncio", "httpx2")
_SECRET = ("authorization", "secret", "password", "token", "database_url")


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send logs to a stream, as JSON for programs or in colour for people.

    Args:
        settings: `log_level`, and `log_format`: `auto` writes for people on a terminal and JSON
            elsewhere.
        stream: Where to; default stderr.
    """
    target = stream or sys.stderr
    level, form = settings.log_level, settings.log_format
    people = form == "console" or (form == "auto" and target.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    last: list[Any] = (
        # Not the rich tracebacks of its default: they show local variables, secrets among them.
        [
            structlog.dev.ConsoleRenderer(
                colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    # Libraries log through the standard module; their lines take the same road.
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    root_handler = logging.StreamHandler(target)
    root_handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [root_handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def get(name: str) -> Any:  # noqa: ANN401
    """Give a logger.

    Args:
        name: What part of the service speaks.

    Returns:
        A structlog logger.
    """
    return structlog.get_logger(part=name)


def _hide_secrets(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    for name in event:
        if any(word in name.lower() for word in _SECRET):
            event[name] = "…"
    return event
