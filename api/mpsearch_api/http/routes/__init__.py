"""The routes, one module per resource."""

from mpsearch_api.http.routes import (
    events,
    hardware,
    jobs,
    listings,
    models,
    operations,
    results,
    solve,
    uploads,
)

__all__ = ["ROUTERS"]

ROUTERS = (
    jobs.router,
    events.router,
    results.router,
    uploads.router,
    models.router,
    hardware.router,
    solve.router,
    listings.router,
    operations.router,
)
