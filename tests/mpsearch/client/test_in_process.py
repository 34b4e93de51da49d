from __future__ import annotations

import asyncio
import threading

import httpx2
import pytest

from mpsearch.client.in_process import app_here, app_in_thread


class App:
    """Answers by path, and keeps what it was told."""

    def __init__(self) -> None:
        self.lifespan: list[str] = []
        self.go_on = threading.Event()
        self.left = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                self.lifespan.append(message["type"])
                await send({"type": message["type"] + ".complete"})
            return
        message = await receive()
        path = scope["path"]
        if path == "/broken":
            raise ValueError("a fault of the application")
        if path == "/mute":
            assert (await receive())["type"] == "http.disconnect"
            self.left.set()
            return
        headers = [(b"x-query", scope["query_string"]), (b"x-method", scope["method"].encode())]
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        if path == "/live":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            while not self.go_on.is_set():
                await asyncio.sleep(0.005)
            await send({"type": "http.response.body", "body": b"second", "more_body": True})
        if path == "/late":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            raise ValueError("a late fault")
        await send({"type": "http.response.body", "body": message["body"]})


@pytest.fixture
def app():
    return App()


def test_requests_reach_the_application_and_answers_come_back(app) -> None:
    with app_in_thread(app) as transport, httpx2.Client(transport=transport) as client:
        answer = client.post("http://here/echo?a=1", content=b"body")
    assert (answer.status_code, answer.content) == (202, b"body")
    assert answer.headers["x-query"] == "a=1"
    assert answer.headers["x-method"] == "POST"


def test_the_lifespan_runs_around_the_requests(app) -> None:
    with app_in_thread(app):
        assert app.lifespan == ["lifespan.startup"]
    assert app.lifespan == ["lifespan.startup", "lifespan.shutdown"]


@pytest.fixture
def client(app):
    with app_in_thread(app) as transport, httpx2.Client(transport=transport) as client:
        yield client


def test_parts_of_an_answer_come_as_they_are_made(client, app) -> None:
    with client.stream("GET", "http://here/live") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"first"
        app.go_on.set()
        assert b"".join(parts) == b"second"


@pytest.mark.parametrize("path", ["broken", "late"])
def test_faults_of_the_application_are_raised_where_the_test_sees_them(client, path) -> None:
    with pytest.raises(ValueError, match="fault"):
        client.get(f"http://here/{path}")


def test_an_answer_that_does_not_come_times_out_and_the_application_hears(client, app) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        client.get("http://here/mute", timeout=0.05)
    assert app.left.wait(5)


def test_a_part_that_does_not_come_is_a_time_out(client) -> None:
    with (
        client.stream("GET", "http://here/live", timeout=0.05) as answer,
        pytest.raises(httpx2.ReadTimeout),
    ):
        answer.read()


def test_after_its_end_an_application_cannot_be_reached(app) -> None:
    with app_in_thread(app) as transport:
        client = httpx2.Client(transport=transport)
    with pytest.raises(httpx2.ConnectError, match="has ended"):
        client.get("http://here/")


def test_a_lifespan_that_fails_is_raised_at_the_start() -> None:
    async def failing(scope, receive, send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def main() -> None:
        async with app_here(failing):
            raise AssertionError("must not be reached")

    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(main())


def test_it_serves_an_asynchronous_client(app) -> None:
    async def main() -> bytes:
        async with (
            app_here(app) as transport,
            httpx2.AsyncClient(transport=transport) as client,
        ):
            return (await client.put("http://here/echo", content=b"x")).content

    assert asyncio.run(main()) == b"x"
