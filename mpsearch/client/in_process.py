"""Speaking to an application in the same process: for tests, and for a page beside the service.

```python
with app_in_thread(create_app(settings)) as transport, Client(transport=transport) as client:
    ...
async with app_here(create_app(settings)) as transport:
    async with AsyncClient(transport=transport) as client:
        ...
```

Other than `httpx2.ASGITransport`, they hand an answer's parts on as they come, so that event
streams are live, and they run the application's lifespan.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import httpx2

__all__ = ["App", "AppTransport", "app_here", "app_in_thread"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI application."""

Result = TypeVar("Result")

_END = None
_STOP = 10.0
_GOODBYE = 0.5


class _Exchange:
    """One request and its answer, while the application works on it."""

    def __init__(self, body: bytes) -> None:
        self.started: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        # A bound of one part, so that a slow reader slows the application down.
        self.parts: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue(1)
        self.closed = asyncio.Event()
        self._body: bytes | None = body

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started.set_result(message)
            return
        if message.get("body"):
            await self.parts.put(message["body"])
        if not message.get("more_body", False):
            await self.parts.put(_END)

    async def run(self, app: App, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self.receive, self.send)
            if not self.started.done():
                raise RuntimeError("the application ended without an answer")
        except Exception as error:  # noqa: BLE001 - raised again where the answer is read
            if self.started.done():
                await self.parts.put(error)
            else:
                self.started.set_exception(error)


class _Body(httpx2.AsyncByteStream):
    """The parts of an answer as they come; closing it tells the application that nobody listens."""

    def __init__(
        self, exchange: _Exchange, task: asyncio.Task[None], silence: float | None
    ) -> None:
        self._exchange = exchange
        self._task = task
        self._silence = silence

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            try:
                part = await asyncio.wait_for(self._exchange.parts.get(), self._silence)
            except TimeoutError as error:
                raise httpx2.ReadTimeout("the application sent nothing for too long") from error
            if isinstance(part, BaseException):
                raise part
            if part is _END:
                return
            yield part

    async def aclose(self) -> None:
        self._exchange.closed.set()
        # The application may end by itself on hearing of it, as it does under a server.
        await asyncio.wait({self._task}, timeout=_GOODBYE)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@asynccontextmanager
async def app_here(app: App) -> AsyncIterator[AppTransport]:
    """Run an application's lifespan in this event loop.

    Args:
        app: An ASGI application.

    Yields:
        The transport for an `AsyncClient`.
    """
    events: asyncio.Queue[Message] = asyncio.Queue()
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    living = asyncio.create_task(_lifespan(app, events, started))
    await events.put({"type": "lifespan.startup"})
    await started
    try:
        yield AppTransport(app)
    finally:
        await events.put({"type": "lifespan.shutdown"})
        await asyncio.wait_for(living, _STOP)


async def _lifespan(
    app: App, events: asyncio.Queue[Message], started: asyncio.Future[None]
) -> None:
    async def send(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set_result(None)
        elif message["type"].endswith(".failed"):
            raise RuntimeError(message.get("message") or message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    try:
        await app(scope, events.get, send)
        if not started.done():
            raise RuntimeError("the application's lifespan ended before it had started")
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)


class AppTransport(httpx2.AsyncBaseTransport):
    """Carries requests of an `AsyncClient` to an application, under asyncio."""

    def __init__(self, app: App, client: tuple[str, int] = ("127.0.0.1", 50_000)) -> None:
        """Take the application.

        Args:
            app: An ASGI application, whose lifespan somebody else runs; see `app_here`.
            client: Address that requests seem to come from.
        """
        self._app = app
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Have the application answer; see `httpx2.AsyncBaseTransport`.

        Args:
            request: The request.

        Returns:
            The answer, whose body is still coming in.

        Raises:
            ReadTimeout: The application did not begin its answer in time.
        """
        exchange = _Exchange(await request.aread())
        silence = request.extensions.get("timeout", {}).get("read")
        task = asyncio.create_task(exchange.run(self._app, self._scope(request)))
        body = _Body(exchange, task, silence)
        try:
            start = await asyncio.wait_for(asyncio.shield(exchange.started), silence)
        except TimeoutError as error:
            await body.aclose()
            raise httpx2.ReadTimeout("the application did not answer in time") from error
        return httpx2.Response(start["status"], headers=start.get("headers", []), stream=body)

    def _scope(self, request: httpx2.Request) -> dict[str, Any]:
        url = request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "server": (url.host, url.port or 80),
            "client": self._client,
            "root_path": "",
        }


class _BlockingBody(httpx2.SyncByteStream):
    """The parts of an answer, fetched from the loop of another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: httpx2.AsyncByteStream) -> None:
        self._loop = loop
        self._stream = stream
        self._parts = aiter(stream)

    def __iter__(self) -> Iterator[bytes]:
        while (part := _called(self._loop, self._next())) is not None:
            yield part

    async def _next(self) -> bytes | None:
        return await anext(self._parts, None)

    def close(self) -> None:
        _called(self._loop, self._stream.aclose())


class _ThreadTransport(httpx2.BaseTransport):
    """Carries requests of a `Client` to an application in the loop of another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: AppTransport) -> None:
        self._loop = loop
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._loop.is_closed():
            raise httpx2.ConnectError("the application has ended")
        inner = httpx2.Request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.read(),
            extensions=request.extensions,
        )
        answer = _called(self._loop, self._inner.handle_async_request(inner))
        assert isinstance(answer.stream, httpx2.AsyncByteStream)
        body = _BlockingBody(self._loop, answer.stream)
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=body)


@contextmanager
def app_in_thread(app: App) -> Iterator[httpx2.BaseTransport]:
    """Run an application in an event loop of its own, in another thread.

    Args:
        app: An ASGI application.

    Yields:
        The transport for a `Client`; it serves any number of them, one after the other or at once.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="app", daemon=True)
    thread.start()
    here = app_here(app)
    try:
        yield _ThreadTransport(loop, _called(loop, here.__aenter__()))
        _called(loop, here.__aexit__(None, None, None))
    except BaseException:
        # The application ends as well as it can, and what went wrong is what is told.
        with suppress(Exception):
            _called(loop, here.__aexit__(None, None, None), _STOP)
        raise
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_STOP)
        loop.close()


def _called(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Result], seconds: float | None = None
) -> Result:
    return asyncio.run_coroutine_threadsafe(work, loop).result(seconds)
