"""Carrying out flows while the caller waits."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mpsearch.client.link import arguments, failures, head_of, link_error
from mpsearch.client.steps import (
    Answer,
    Call,
    Done,
    Emit,
    Flow,
    LinkError,
    Open,
    Read,
    Send,
    Sleep,
    Step,
    Work,
)

if TYPE_CHECKING:
    import httpx2

__all__ = ["Driver"]

Result = TypeVar("Result")


class Driver:
    """Carries out flows over one pool of connections."""

    def __init__(self, http: httpx2.Client, timeout: float) -> None:
        """Take over the pool.

        Args:
            http: The pool.
            timeout: Seconds for connecting, and between two parts of an answer or a body.
        """
        self.http = http
        self.timeout = timeout

    def run(self, flow: Flow[Result]) -> Result:
        """Carry out a flow that hands nothing out on the way.

        Args:
            flow: What to do.

        Returns:
            Its result.
        """
        with closing(self._drive(flow)) as items:
            found: Result = next(item.value for item in items if isinstance(item, Done))
        return found

    def iterate(self, flow: Flow[Any]) -> Iterator[Any]:
        """Carry out a flow as its items are asked for.

        Args:
            flow: What to do.

        Yields:
            What it hands out.
        """
        with closing(self._drive(flow)) as items:
            for item in items:
                if isinstance(item, Emit):
                    yield item.item

    def _drive(self, flow: Flow[Any]) -> Generator[Emit | Done, None, None]:
        reply: Any = None
        failure: LinkError | None = None
        with _Link(self.http, self.timeout) as link:
            try:
                while True:
                    step = flow.send(reply) if failure is None else flow.throw(failure)
                    reply = failure = None
                    if isinstance(step, Emit):
                        yield step
                        continue
                    try:
                        reply = link.do(step)
                    except LinkError as error:
                        failure = error
            except StopIteration as end:
                yield Done(end.value)
            finally:
                flow.close()


class _Link:
    """Carries out the steps of one flow."""

    def __init__(self, http: httpx2.Client, timeout: float) -> None:
        self._http = http
        self._timeout = timeout
        self._open = ExitStack()
        self._parts: Iterator[bytes] = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def do(self, step: Step) -> Any:  # noqa: ANN401
        """Carry out one step; see `steps`."""
        match step:
            case Send(call):
                return self._sent(call)
            case Open(call):
                return self._opened(call)
            case Read():
                try:
                    return next(self._parts, None)
                except failures() as error:
                    raise link_error(error) from error
            case Sleep(seconds):
                time.sleep(seconds)
                return None
            case Work(function):
                return function()
        raise AssertionError(f"no such step: {step}")

    def _sent(self, call: Call) -> Answer:
        request = self._http.build_request(**arguments(call, self._timeout))
        try:
            response = self._http.send(request)
        except failures() as error:
            raise link_error(error) from error
        return head_of(response, response.content)

    def _opened(self, call: Call) -> Answer:
        self._open.close()
        request = self._http.build_request(**arguments(call, self._timeout))
        try:
            response = self._http.send(request, stream=True)
            self._open.callback(response.close)
            self._parts = response.iter_bytes()
            return head_of(response, b"" if response.is_success else response.read())
        except failures() as error:
            raise link_error(error) from error
