"""Speaking to an application in the same process: for tests, and for a page beside the service.

`AppTransport` is for `AsyncClient`, `AppThread` for `Client`:

```python
with AppThread(create_app(settings)) as transport:
    client = Client(transport=transport)
```

Other than `httpx2.ASGITransport`, they hand an answer's parts on as they come, so that event
streams are live, and they run the application's lifespan.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import suppress
from typing import Any, Self

import httpx2

__all__ = ["App", "AppThread", "AppTransport"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
"""An ASGI application."""

_END = None
_STOP = 10.0


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
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


class AppTransport(httpx2.AsyncBaseTransport):
    """Carries requests of an `AsyncClient` to an application, under asyncio."""

    def __init__(self, app: App, client: tuple[str, int] = ("127.0.0.1", 50_000)) -> None:
        """Take the application; nothing runs yet.

        Args:
            app: An ASGI application.
            client: Address that requests seem to come from.
        """
        self._app = app
        self._client = client
        self._lifespan: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Message] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        """Run the start of the application's lifespan; without it, requests still work."""
        started = asyncio.get_running_loop().create_future()
        await self._events.put({"type": "lifespan.startup"})
        self._lifespan = asyncio.create_task(self._live(started))
        await started
        return self

    async def __aexit__(self, *_: object) -> None:
        """Run the end of the application's lifespan."""
        if self._lifespan is not None:
            await self._events.put({"type": "lifespan.shutdown"})
            await asyncio.wait_for(self._lifespan, _STOP)
            self._lifespan = None

    async def _live(self, started: asyncio.Future[None]) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                started.set_result(None)
            elif message["type"].endswith(".failed"):
                raise RuntimeError(message.get("message") or message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        try:
            await self._app(scope, self._events.get, send)
        except Exception as error:
            if started.done():
                raise
            started.set_exception(error)

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
    """The parts of an answer, fetched from the loop of an `AppThread`."""

    def __init__(self, thread: AppThread, stream: httpx2.AsyncByteStream) -> None:
        self._thread = thread
        self._stream = stream
        self._parts = aiter(stream)

    def __iter__(self) -> Iterator[bytes]:
        while (part := self._thread.call(self._next())) is not None:
            yield part

    async def _next(self) -> bytes | None:
        return await anext(self._parts, None)

    def close(self) -> None:
        self._thread.call(self._stream.aclose())


class AppThread(httpx2.BaseTransport):
    """Carries requests of a `Client` to an application that lives in an event loop of its own."""

    def __init__(self, app: App, client: tuple[str, int] = ("127.0.0.1", 50_000)) -> None:
        """Take the application; its loop runs from entering the context to leaving it.

        Args:
            app: An ASGI application.
            client: Address that requests seem to come from.
        """
        self._app = app
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._transport: AppTransport | None = None

    def __enter__(self) -> Self:
        """Start the loop and the application's lifespan."""
        self._thread.start()
        self._transport = self.call(self._entered())
        return self

    async def _entered(self) -> AppTransport:
        return await AppTransport(self._app, self._client).__aenter__()

    def __exit__(self, *_: object) -> None:
        """End the application's lifespan and the loop."""
        try:
            if self._transport is not None:
                self.call(self._transport.__aexit__())
        finally:
            self._transport = None
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP)
            self._loop.close()

    def close(self) -> None:
        """Do nothing: clients come and go, and the application stays until the context ends."""

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        """Run a coroutine in the loop.

        Args:
            work: The coroutine.

        Returns:
            Its result.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Have the application answer; see `httpx2.BaseTransport`.

        Args:
            request: The request.

        Returns:
            The answer, whose body is still coming in.

        Raises:
            ConnectError: The context has not been entered, or has ended.
        """
        if self._transport is None:
            raise httpx2.ConnectError("the application is not running: use `with AppThread(app)`")
        inner = httpx2.Request(
            request.method,
            request.url,
            headers=request.headers,
            content=request.read(),
            extensions=request.extensions,
        )
        answer = self.call(self._transport.handle_async_request(inner))
        body = _BlockingBody(self, answer.stream)
        return httpx2.Response(answer.status_code, headers=answer.headers.raw, stream=body)
