"""What the client's logic asks of the outside: it is written once, without input or output.

An operation of the client is a generator, a `Flow`. It yields steps ("send this", "sleep so long")
and is resumed with what came of them; a driver, blocking or asynchronous, carries the steps out.
So retries, uploads and reconnecting exist once and are tested without a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "Answer",
    "Call",
    "Done",
    "Emit",
    "Flow",
    "LinkError",
    "Open",
    "Read",
    "Send",
    "Sleep",
    "Step",
    "Work",
    "call_of",
    "in_thread",
    "mapped",
    "opened",
    "pause",
    "read",
    "sent_once",
    "told",
]

Result = TypeVar("Result")


class LinkError(Exception):
    """A request got no complete answer; `silent` when it ran into its time limit."""

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        """Keep whether time ran out beside the reason.

        Args:
            reason: What went wrong, in words.
            silent: Whether the other side said nothing for too long.
        """
        super().__init__(reason)
        self.silent = silent


@dataclass(frozen=True)
class Call:
    """A request to make.

    Attributes:
        method: HTTP method.
        path: Path below the server's address, already quoted.
        query: Query parameters.
        headers: Headers beside those that every request has.
        content: Body.
        silence: Seconds to wait for the next bytes of the answer; None: the client's usual time.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    silence: float | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        content: Body; empty for a stream, whose parts are asked for with `Read`.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300

    @property
    def media_type(self) -> str:
        """Media type of the body, in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True)
class Send:
    """Make a request and read the whole answer; gives an `Answer` or raises `LinkError`."""

    call: Call


@dataclass(frozen=True)
class Open:
    """Make a request and leave its body unread, unless it failed; closes what was open before."""

    call: Call


@dataclass(frozen=True)
class Read:
    """Read the next part of the open answer; gives bytes, or None at its end."""


@dataclass(frozen=True)
class Sleep:
    """Do nothing for `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Call `function`, which reads or writes files, where it holds up nobody; gives its result."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hand `item` to whoever iterates over the flow."""

    item: Any


@dataclass(frozen=True)
class Done:
    """What drivers give last: the result of the flow."""

    value: Any


Step = Send | Open | Read | Sleep | Work | Emit
Flow = Generator[Step, Any, Result]


def call_of(method: str, path: str, /, **query: object) -> Call:
    """Write a request without a body.

    Args:
        method: HTTP method.
        path: Path, already quoted.
        **query: Query parameters; those that are None are left out.

    Returns:
        The request.
    """
    return Call(method, path, {k: str(v) for k, v in query.items() if v is not None})


def sent_once(call: Call) -> Flow[Answer]:
    """Make a request, once.

    Args:
        call: The request.

    Yields:
        The step.

    Returns:
        The answer.
    """
    answer: Answer = yield Send(call)
    return answer


def opened(call: Call) -> Flow[Answer]:
    """Open a stream, once.

    Args:
        call: The request.

    Yields:
        The step.

    Returns:
        Status and headers, and the body where the status is not one of success.
    """
    answer: Answer = yield Open(call)
    return answer


def read() -> Flow[bytes | None]:
    """Read on in the open stream.

    Yields:
        The step.

    Returns:
        The next bytes; None at the end.
    """
    part: bytes | None = yield Read()
    return part


def pause(seconds: float) -> Flow[None]:
    """Let time pass.

    Args:
        seconds: How long.

    Yields:
        The step.
    """
    yield Sleep(max(0.0, seconds))


def in_thread(function: Callable[[], Result]) -> Flow[Result]:
    """Read or write files where it holds up nobody.

    Args:
        function: What to call.

    Yields:
        The step.

    Returns:
        What it returned.
    """
    found: Result = yield Work(function)
    return found


def told(flow: Flow[Result], on_item: Callable[[Any], object] | None) -> Flow[Result]:
    """Give what a flow emits to a function instead of to whoever iterates over it.

    Args:
        flow: The flow.
        on_item: Called with every item; None: they are dropped.

    Returns:
        The same flow without its items.
    """

    def take(item: Any) -> None:  # noqa: ANN401
        if on_item is not None:
            on_item(item)

    return mapped(flow, take)


def mapped(flow: Flow[Result], take: Callable[[Any], Emit | None]) -> Flow[Result]:
    """Change what a flow emits.

    Args:
        flow: The flow.
        take: Given every item; what it returns is emitted instead, and None is nothing.

    Yields:
        All other steps, and what `take` returned.

    Returns:
        The result of the flow.
    """
    reply: Any = None
    failure: LinkError | None = None
    try:
        while True:
            step: Step | None = flow.send(reply) if failure is None else flow.throw(failure)
            reply = failure = None
            if isinstance(step, Emit):
                step = take(step.item)
            if step is not None:
                try:
                    reply = yield step
                except LinkError as error:
                    failure = error
    except StopIteration as end:
        found: Result = end.value
        return found
    finally:
        flow.close()
