"""Putting the page under `/` of the application, beside the API and not over it."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import core, ui
from starlette.routing import Match, Mount
from starlette.types import Scope

from mpsearch_api.page import job_page, jobs_page, submit_page
from mpsearch_api.page.session import Door

__all__ = ["API_PREFIXES", "add_page"]

API_PREFIXES = ("/v1", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='3' fill='%231d4e89'/>"
    "<path d='M3 13V8h2v5zm4 0V3h2v10zm4 0V6h2v7z' fill='white'/></svg>"
)


class _PageMount(Mount):
    """A mount that leaves the API's paths to the API, so that it answers 404 and 405 itself."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match everything but the API.

        Args:
            scope: The request.

        Returns:
            As `Mount.matches`; never a match for the API's paths.
        """
        path = scope.get("path", "")
        if any(path == prefix or path.startswith(f"{prefix}/") for prefix in API_PREFIXES):
            return Match.NONE, {}
        return super().matches(scope)


def add_page(app: FastAPI) -> None:
    """Mount the page at `/`; NiceGUI allows one such application in a process.

    Args:
        app: The application with the API's routes.
    """
    door = Door(app)
    jobs_page.register(door)
    submit_page.register(door)
    job_page.register(door)
    ui.run_with(
        app,
        title="mpsearch",
        favicon=f"data:image/svg+xml,{ICON}",
        dark=None,
        language="en-US",
        show_welcome_message=False,
    )
    app.router.routes[-1] = _PageMount("/", app=core.app)
