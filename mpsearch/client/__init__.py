"""Python client of the service; imports no torch, no server and no database.

`Client` blocks, `AsyncClient` is for asyncio and trio; both do the same over one core.
"""

from mpsearch.client.asynchronous import AsyncClient
from mpsearch.client.errors import (
    AnswerError,
    ConflictError,
    ForbiddenError,
    InfeasibleRequestError,
    JobCancelledError,
    JobError,
    JobInfeasibleError,
    JobRefusedError,
    JobUnsolvedError,
    NotFoundError,
    RefusedError,
    ServerFaultError,
    ServiceError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    UnsolvedRequestError,
    UploadError,
    WaitTimeoutError,
)
from mpsearch.client.retrying import Retries
from mpsearch.client.sync import Client
from mpsearch.schemas.jobs import Event, Execution, Job, JobRequest, SolverSettings
from mpsearch.schemas.uploads import Stored

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "ConflictError",
    "Event",
    "Execution",
    "ForbiddenError",
    "InfeasibleRequestError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobInfeasibleError",
    "JobRefusedError",
    "JobRequest",
    "JobUnsolvedError",
    "NotFoundError",
    "RefusedError",
    "Retries",
    "ServerFaultError",
    "ServiceError",
    "SolverSettings",
    "Stored",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnreachableError",
    "UnsolvedRequestError",
    "UploadError",
    "WaitTimeoutError",
]
