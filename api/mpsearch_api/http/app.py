"""The application: routes, the layers around them, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from mpsearch_api.blobs import open_blobs
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.http import problems
from mpsearch_api.http.borders import LOOPBACK_NAMES, Borders, is_loopback
from mpsearch_api.http.catalogue import Catalogue
from mpsearch_api.http.documented import TAGS, document
from mpsearch_api.http.gate import Gate, check_open_mode
from mpsearch_api.http.methods import Methods, MethodsOf
from mpsearch_api.http.routes import ROUTERS
from mpsearch_api.http.service import Service
from mpsearch_api.http.trace import Trace
from mpsearch_api.settings import Settings
from mpsearch_api.store import Store, open_store

__all__ = ["create_app"]

DESCRIPTION = """\
Which precision should every layer have? Submit a model and a budget, follow the job, get the
allocation with its certificate. Every error is a problem document (RFC 9457).
"""


def create_app(
    settings: Settings,
    *,
    store: Store | None = None,
    blobs: BlobStore | None = None,
    host: str = "127.0.0.1",
    catalogue: Catalogue | None = None,
    page: bool = False,
) -> FastAPI:
    """Make the application.

    Args:
        settings: Of the service.
        store: Jobs, uploads and keys; opened and closed by the application when not given.
        blobs: Their bytes; opened when not given.
        host: Address that the server listens on; open mode needs a loopback address.
        catalogue: Names that need torch; made by a process at start when not given.
        page: Whether the web page is served at `/`.

    Returns:
        The application; its lifespan starts and ends the solving processes.
    """
    check_open_mode(settings, host)
    own_store = store is None
    store = store or open_store(settings)
    service = Service(
        settings, store, blobs or open_blobs(settings), host=host, catalogue=catalogue
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with service.running():
                yield
        finally:
            if own_store:
                service.store.close()

    from mpsearch import __version__

    app = FastAPI(
        title="mpsearch",
        version=__version__,
        summary="Mixed-precision bit-allocation search as a job service",
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=TAGS,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    app.state.service = service
    app.state.methods = MethodsOf(app)
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.user_middleware = _layers(app, service)
    if page:
        from mpsearch_api.page import add_page

        add_page(app)
    return app


def _layers(app: FastAPI, service: Service) -> list[Middleware]:
    """List what a request passes on its way to the routes, the outermost first."""
    settings = service.settings
    hosts = {*LOOPBACK_NAMES, service.host, *settings.allowed_hosts}
    # With keys nothing is done for a browser that was only tricked into asking.
    guarded_by_keys = settings.open_mode is False or not is_loopback(service.host)
    layers = [
        Middleware(Trace, metrics=service.metrics),
        Middleware(
            Borders,
            hosts=hosts,
            origins=settings.cors_origins,
            any_host=guarded_by_keys and not settings.allowed_hosts,
        ),
    ]
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
                expose_headers=["Location", "ETag", "Retry-After", "X-Request-ID"],
            )
        )
    return [
        *layers,
        # Outside of compression, so that HEAD tells the length that GET has.
        Middleware(Methods, methods=app.state.methods),
        Middleware(GZipMiddleware, minimum_size=1024, compresslevel=5),
        Middleware(Gate, service=service),
    ]
