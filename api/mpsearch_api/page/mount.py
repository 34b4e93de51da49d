"""Putting the page under `/` of the application, beside the API and not over it."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import core, ui
from starlette.routing import Match, Mount
from starlette.types import Scope

from mpsearch_api.page import job_page, jobs_page, submit_page
from mpsearch_api.page.session import Door

__all__ = ["add_page"]

KEY_SECONDS = 24 * 3600.0
"""How long the server remembers the key of a tab, which it is not told the closing of."""

PAGES = ("/", "/new", "/favicon.ico")
BELOW = ("/jobs/", "/_nicegui/", "/_nicegui_ws/")
ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<rect width='16' height='16' rx='3' fill='%231d4e89'/>"
    "<path d='M3 13V8h2v5zm4 0V3h2v10zm4 0V6h2v7z' fill='white'/></svg>"
)


class _PageMount(Mount):
    """A mount of the page's own paths alone: what it does not know, the API answers."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the paths of the page.

        Args:
            scope: The request.

        Returns:
            As `Mount.matches`; no match for every other path.
        """
        path = scope.get("path", "")
        if path in PAGES or path.startswith(BELOW):
            return super().matches(scope)
        return Match.NONE, {}


def add_page(app: FastAPI) -> None:
    """Mount the page at `/`; NiceGUI allows one such application in a process.

    Args:
        app: The application with the API's routes.
    """
    core.app.storage.max_tab_storage_age = KEY_SECONDS
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
