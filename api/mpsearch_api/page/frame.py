"""What every page has around it: header, navigation, skip link, and room for the content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui

from mpsearch_api.page.session import Visit, log_out

__all__ = ["frame", "heading", "human_size"]


@contextmanager
def frame(visit: Visit, title: str) -> Iterator[ui.column]:
    """Lay out a page.

    Args:
        visit: Who looks.
        title: The page's heading.

    Yields:
        The column to build the content in.
    """
    ui.page_title(f"{title} – mpsearch")
    with ui.row().classes("w-full items-center gap-4 border-b pb-2").props("role=navigation"):
        ui.link("mpsearch", "/").classes("text-2xl font-bold no-underline")
        ui.link("Jobs", "/")
        ui.link("New search", "/new")
        ui.link("API", "/docs")
        ui.space()
        if visit.key is None:
            ui.badge("open mode: no API key is asked for", color="warning").props("role=note")
        else:
            ui.button("Log out", on_click=log_out).props("flat dense")
    main = ui.column().classes("w-full max-w-6xl mx-auto gap-4").props("role=main")
    ui.skip_link(target=main)
    with main:
        heading(title, level=1)
        yield main


def heading(text: str, level: int = 2) -> ui.label:
    """Write a heading that screen readers know as one.

    Args:
        text: The words.
        level: 1 to 6.

    Returns:
        The label.
    """
    size = {1: "text-2xl", 2: "text-xl"}.get(level, "text-lg")
    return ui.label(text).classes(f"{size} break-all").props(f"role=heading aria-level={level}")


def human_size(size: float) -> str:
    """Write a number of bytes for people.

    Args:
        size: Bytes.

    Returns:
        Such as `1.5 MiB`.
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
