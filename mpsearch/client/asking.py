"""Asking the service: one object, a list, or a list that comes page by page."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from mpsearch.client.answers import decoded, parsed
from mpsearch.client.errors import AnswerError
from mpsearch.client.retrying import Backoff, Contact, Retries, sent
from mpsearch.client.steps import Emit, Flow, call_of
from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Job, Page
from mpsearch.schemas.uploads import Stored

__all__ = ["Asking", "Reference", "id_of"]

Model = TypeVar("Model", bound=BaseModel)
Reference = str | Job | Stored
"""An object of the service, or its id."""

_PAGE = 100


def id_of(reference: Reference) -> str:
    """Read an id.

    Args:
        reference: The object or its id.

    Returns:
        The id, quoted for a path.

    Raises:
        InputError: It is empty.
    """
    text = reference if isinstance(reference, str) else reference.id
    if not text:
        raise InputError("the id is empty")
    return quote(text, safe="")


@dataclass(frozen=True)
class Asking:
    """Questions to the service.

    Attributes:
        server: Address of the service, for messages.
        retries: How long to try again.
        contact: Whether the service has ever answered.
    """

    server: str
    retries: Retries = field(default_factory=Retries)
    contact: Contact = field(default_factory=Contact)

    def backoff(self) -> Backoff:
        """Make what counts the failures of one request."""
        return Backoff(self.retries, self.server, self.contact)

    def get(self, kind: type[Model], path: str, **query: object) -> Flow[Model]:
        """Read a typed object.

        Args:
            kind: What it is.
            path: Where it is.
            **query: Query parameters.

        Yields:
            The steps.

        Returns:
            The object.
        """
        call = call_of("GET", path, **query)
        return parsed(kind, (yield from sent(call, self.backoff())), call)

    def listing(self, name: str) -> Flow[list[dict[str, Any]]]:
        """Read what the service offers: formats, estimators, solvers, architectures.

        Args:
            name: Which.

        Yields:
            The steps.

        Returns:
            One mapping for each.

        Raises:
            AnswerError: The answer is no list.
        """
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            call = call_of("GET", f"/v1/{name}", cursor=cursor)
            page = decoded((yield from sent(call, self.backoff())), call)
            items = page.get("items") if isinstance(page, dict) else page
            if not isinstance(items, list):
                raise AnswerError(f"{call.path}: the answer is no list")
            found += items
            cursor = page.get("next") if isinstance(page, dict) else None
            if cursor is None:
                return found

    def pages(self, kind: type[Model], path: str, most: int | None, **query: object) -> Flow[None]:
        """Hand out the objects of a list, newest first.

        Args:
            kind: What they are.
            path: Path of the list.
            most: How many; None: all.
            **query: Query parameters.

        Yields:
            The steps, and an `Emit` for every object.

        Returns:
            Nothing.
        """
        cursor: str | None = None
        left = math.inf if most is None else most
        while left > 0:
            page = yield from self.get(
                Page[kind],  # type: ignore[valid-type]
                path,
                cursor=cursor,
                limit=int(min(_PAGE, left)),
                **query,
            )
            for item in page.items:
                yield Emit(item)
            left -= len(page.items)
            cursor = page.next
            if cursor is None:
                return
