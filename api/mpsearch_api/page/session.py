"""Who looks at the page: one API key per browser tab, kept in the server's memory alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import FastAPI
from nicegui import Client, ui
from nicegui import app as page_app

from mpsearch.client import AsyncClient
from mpsearch.client.errors import UnauthorizedError
from mpsearch.client.in_process import AppTransport
from mpsearch.errors import MpsearchError
from mpsearch_api.http.borders import is_local, is_loopback

__all__ = ["Door", "Visit", "say_error"]

KEY = "api_key"
BASE = "http://127.0.0.1"


@dataclass(frozen=True)
class Visit:
    """One opening of the page by somebody who was let in.

    Attributes:
        client: The API as this person may use it.
        key: Their API key; None in open mode.
    """

    client: AsyncClient
    key: str | None


Show = Callable[[Visit], Awaitable[None]]


class Door:
    """Lets people in with an API key, and nobody without where the service asks for one."""

    def __init__(self, app: FastAPI) -> None:
        """Stand before an application.

        Args:
            app: The application with the API's routes, which is asked in-process.
        """
        self._app = app

    async def enter(self, show: Show) -> None:
        """Show a page to whoever has a key that works, and the login form to others.

        Args:
            show: Builds the page.
        """
        await ui.context.client.connected()
        content = ui.column().classes("w-full gap-4")
        await self._enter(show, content)

    async def _enter(self, show: Show, content: ui.column) -> None:
        key = page_app.storage.tab.get(KEY)
        transport = AppTransport(self._app, _address(ui.context.client))
        client = AsyncClient(BASE, api_key=key, transport=transport)
        ui.context.client.on_delete(client.close)
        content.clear()
        with content:
            try:
                await client.estimators()
                await show(Visit(client, key))
            except UnauthorizedError:
                content.clear()
                self._ask_for_key(show, content, refused=key is not None)
            except MpsearchError as error:
                ui.label(f"The service refuses: {error}").props("role=alert")

    def _ask_for_key(self, show: Show, content: ui.column, *, refused: bool) -> None:
        async def try_key() -> None:
            page_app.storage.tab[KEY] = field.value.strip()
            await self._enter(show, content)

        with ui.card().classes("w-full max-w-md mx-auto"):
            ui.label("Log in").classes("text-xl").props("role=heading aria-level=2")
            ui.label(
                "Paste an API key. It is remembered for this tab: a day at most, or until Log out."
            )
            field = ui.input("API key", password=True, password_toggle_button=True)
            field.props("autocomplete=off autofocus").classes("w-full").on("keydown.enter", try_key)
            if refused:
                ui.label("This key is not known, has expired or was revoked.").classes(
                    "text-negative"
                ).props("role=alert")
            ui.button("Log in", on_click=try_key)
            ui.label("Make one on the server: mpsearch keys create NAME").classes("text-sm")


def _address(client: Client) -> tuple[str, int]:
    """Tell where a visitor is, so that they get the rights and the rate of that place, not ours."""
    peer = client.request.client
    if peer is None:
        return "", 0
    if is_loopback(peer.host) and not is_local(peer.host, client.request.headers):
        return "", 0  # a proxy on this machine, for somebody who may be anywhere
    return peer.host, peer.port


def log_out() -> None:
    """Forget the key of this tab and start over."""
    # In this order: of a tab that was forgotten already there is nothing to take away.
    ui.navigate.to("/")
    page_app.storage.tab.pop(KEY, None)


def say_error(error: MpsearchError) -> None:
    """Show what went wrong, in words that stay until they are read.

    Args:
        error: What the service or the client says.
    """
    ui.notify(str(error), type="negative", timeout=0, close_button="Close", multi_line=True)
