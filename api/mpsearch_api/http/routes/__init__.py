"""The routes, one module per resource."""

from mpsearch_api.http.routes import jobs, operations

__all__ = ["ROUTERS"]

ROUTERS = (jobs.router, operations.router)
