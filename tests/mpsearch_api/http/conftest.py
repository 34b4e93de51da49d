"""Applications to send requests to."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from mpsearch_api.http import create_app
from mpsearch_api.http.catalogue import Catalogue, Description
from mpsearch_api.logs import configure_logs
from mpsearch_api.settings import Settings
from mpsearch_api.solving.pool import SolvePool
from tests.mpsearch_api.http.running import BASE_URL, CLIENT, MakeSite, Site


@pytest.fixture(scope="session")
def description() -> Description:
    """What the describing process tells, made once."""

    async def described() -> Description:
        return await Catalogue().get()

    return asyncio.run(described())


@pytest.fixture
def make_site(tmp_path: Path, description: Description) -> MakeSite:
    """Give a function that runs an application with settings of one's own."""

    @contextmanager
    def made(*, host: str = "127.0.0.1", solving: bool = False, **given: object) -> Iterator[Site]:
        values = {"data_dir": tmp_path / "data", "requests_per_minute": 1_000_000} | given
        settings = Settings(**values)
        log = io.StringIO()
        configure_logs(settings, log)
        app = create_app(settings, host=host, catalogue=Catalogue(description))
        if not solving:
            app.state.service.solver = SolvePool(0, seconds=1.0)
        with TestClient(app, base_url=BASE_URL, client=CLIENT) as client:
            yield Site(client, app.state.service, log)

    return made


@pytest.fixture
def site(make_site: MakeSite) -> Iterator[Site]:
    """An application in open mode, without solving processes."""
    with make_site() as found:
        yield found


@pytest.fixture(scope="module")
def solving_site(
    tmp_path_factory: pytest.TempPathFactory, description: Description
) -> Iterator[Site]:
    """An application in open mode with solving processes, which the tests of a module share."""
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), requests_per_minute=1_000_000, solve_processes=1
    )
    app = create_app(settings, catalogue=Catalogue(description))
    with TestClient(app, base_url=BASE_URL, client=CLIENT) as client:
        yield Site(client, app.state.service)
