"""Carrying out flows in an event loop, asyncio's or trio's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
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

__all__ = ["AsyncDriver"]

Result = TypeVar("Result")


class AsyncDriver:
    """Carries out flows over one pool of connections."""

    def __init__(self, http: httpx2.AsyncClient, timeout: float) -> None:
        """Take over the pool.

        Args:
            http: The pool.
            timeout: Seconds for connecting, and between two parts of an answer or a body.
        """
        self.http = http
        self.timeout = timeout

    async def run(self, flow: Flow[Result]) -> Result:
        """Carry out a flow that hands nothing out on the way.

        Args:
            flow: What to do.

        Returns:
            Its result.

        Raises:
            AssertionError: The flow has no end.
        """
        async with aclosing(self._drive(flow)) as items:
            async for item in items:
                if isinstance(item, Done):
                    found: Result = item.value
                    return found
        raise AssertionError("a flow ends with its result")

    async def iterate(self, flow: Flow[Any]) -> AsyncIterator[Any]:
        """Carry out a flow as its items are asked for.

        Args:
            flow: What to do.

        Yields:
            What it hands out.
        """
        async with aclosing(self._drive(flow)) as items:
            async for item in items:
                if isinstance(item, Emit):
                    yield item.item

    async def _drive(self, flow: Flow[Any]) -> AsyncGenerator[Emit | Done, None]:
        reply: Any = None
        failure: LinkError | None = None
        async with _AsyncLink(self.http, self.timeout) as link:
            try:
                while True:
                    step = flow.send(reply) if failure is None else flow.throw(failure)
                    reply = failure = None
                    if isinstance(step, Emit):
                        yield step
                        continue
                    try:
                        reply = await link.do(step)
                    except LinkError as error:
                        failure = error
            except StopIteration as end:
                yield Done(end.value)
            finally:
                flow.close()


class _AsyncLink:
    """Carries out the steps of one flow."""

    def __init__(self, http: httpx2.AsyncClient, timeout: float) -> None:
        self._http = http
        self._timeout = timeout
        self._open = AsyncExitStack()
        self._parts: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def do(self, step: Step) -> Any:  # noqa: ANN401
        """Carry out one step; see `steps`."""
        match step:
            case Send(call):
                return await self._sent(call)
            case Open(call):
                return await self._opened(call)
            case Read():
                assert self._parts is not None
                try:
                    return await anext(self._parts, None)
                except failures() as error:
                    raise link_error(error) from error
            case Sleep(seconds):
                import anyio

                return await anyio.sleep(seconds)
            case Work(function):
                import anyio.to_thread

                return await anyio.to_thread.run_sync(function)
        raise AssertionError(f"no such step: {step}")

    async def _sent(self, call: Call) -> Answer:
        request = self._http.build_request(**arguments(call, self._timeout))
        try:
            response = await self._http.send(request)
        except failures() as error:
            raise link_error(error) from error
        return head_of(response, response.content)

    async def _opened(self, call: Call) -> Answer:
        await self._open.aclose()
        request = self._http.build_request(**arguments(call, self._timeout))
        try:
            response = await self._http.send(request, stream=True)
            self._open.push_async_callback(response.aclose)
            self._parts = response.aiter_bytes()
            return head_of(response, b"" if response.is_success else await response.aread())
        except failures() as error:
            raise link_error(error) from error
