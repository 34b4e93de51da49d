"""What can go wrong between the client and the service; each error keeps its exit code.

```text
MpsearchError
└── ServiceError                     exit 4   carries `status` and `problem`
    ├── UnreachableError (DependencyError)    no answer, or 502, 503, 504, for too long
    ├── ServerFaultError (DependencyError)    500: the service itself failed
    ├── AnswerError (DependencyError)         an answer that this client cannot read
    ├── WaitTimeoutError (TimeoutError)       `wait(timeout=…)` ran out; the job goes on
    ├── UnauthorizedError            exit 2   401: no API key, or not a valid one
    ├── ForbiddenError               exit 2   403: the key lacks a scope
    ├── NotFoundError                exit 2   404, 410: no such object, or another tenant's
    ├── ConflictError                exit 2   409, 412: not in this state
    ├── RefusedError (InputError)    exit 2   400, 413, 422 …: the request cannot be used
    ├── InfeasibleRequestError (InfeasibleError)  exit 3   no allocation meets the budget
    ├── UnsolvedRequestError (UnsolvedError)  exit 4   504: nothing was found in time
    ├── TooManyRequestsError         exit 4   429: carries `retry_after`
    ├── UploadError                  exit 4   what was stored is not what was sent
    └── JobError                     exit 4   the job ended without a result; carries `failure`
        ├── JobInfeasibleError (InfeasibleError)  exit 3
        ├── JobRefusedError (InputError)          exit 2
        ├── JobUnsolvedError (UnsolvedError)      exit 4
        └── JobCancelledError                     exit 4
```
"""

from __future__ import annotations

from typing import Any

from mpsearch.errors import (
    DependencyError,
    InfeasibleError,
    InputError,
    MpsearchError,
    UnsolvedError,
)
from mpsearch.schemas.jobs import Failure, Job
from mpsearch.schemas.problems import Problem

__all__ = [
    "AnswerError",
    "ConflictError",
    "ForbiddenError",
    "InfeasibleRequestError",
    "JobCancelledError",
    "JobError",
    "JobInfeasibleError",
    "JobRefusedError",
    "JobUnsolvedError",
    "NotFoundError",
    "RefusedError",
    "ServerFaultError",
    "ServiceError",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnreachableError",
    "UnsolvedRequestError",
    "UploadError",
    "WaitTimeoutError",
    "job_error",
]


class ServiceError(MpsearchError):
    """Something went wrong with a request; `problem` is what the service said, where it did."""

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        problem: Problem | None = None,
        **more: Any,
    ) -> None:
        """Keep the answer beside the message.

        Args:
            message: What a person should read.
            status: HTTP status of the answer, if there was one.
            problem: Its problem document, if it had one.
            **more: What a base class beside this one takes.
        """
        super().__init__(message, **more)
        self.status = status
        self.problem = problem


class UnreachableError(ServiceError, DependencyError):
    """The service gave no answer, or said that it cannot serve, for as long as was tried."""


class ServerFaultError(ServiceError, DependencyError):
    """The service itself failed; its log has the request id."""


class AnswerError(ServiceError, DependencyError):
    """The answer is not what this version of the client can read."""


class WaitTimeoutError(ServiceError, TimeoutError):
    """Waiting took longer than the caller allowed; the job goes on."""


class UnauthorizedError(ServiceError):
    """No API key was sent, or it is unknown, expired or revoked."""

    exit_code = 2


class ForbiddenError(ServiceError):
    """The API key lacks the scope for this."""

    exit_code = 2


class NotFoundError(ServiceError):
    """There is no such object, or it belongs to another tenant."""

    exit_code = 2


class ConflictError(ServiceError):
    """The object is in a state that does not allow this."""

    exit_code = 2


class RefusedError(ServiceError, InputError):
    """The service cannot use what was sent; `problem.errors` points at the values."""

    exit_code = 2


class InfeasibleRequestError(ServiceError, InfeasibleError):
    """No allocation meets the budget; `minimum` has the least achievable use per resource."""

    exit_code = 3


class UnsolvedRequestError(ServiceError, UnsolvedError):
    """The time for solving ran out before any allocation within the budgets was found."""


class TooManyRequestsError(ServiceError):
    """A rate limit or a quota; `retry_after` in seconds where waiting helps, else None."""

    def __init__(self, message: str, *, retry_after: float | None = None, **more: Any) -> None:
        """Keep when to try again beside the message.

        Args:
            message: What a person should read.
            retry_after: Seconds.
            **more: As in `ServiceError`.
        """
        super().__init__(message, **more)
        self.retry_after = retry_after


class UploadError(ServiceError):
    """What the service stored is not what was sent."""


class JobError(ServiceError):
    """The job ended without a result; `failure` says why and has the tail of its log."""

    def __init__(self, message: str, *, job: str, failure: Failure | None, **more: Any) -> None:
        """Keep the failure beside the message.

        Args:
            message: What a person should read.
            job: Id of the job.
            failure: What the service recorded.
            **more: As in `ServiceError`.
        """
        super().__init__(message, **more)
        self.job = job
        self.failure = failure


class JobInfeasibleError(JobError, InfeasibleError):
    """No allocation meets the budgets of the job."""

    exit_code = 3


class JobRefusedError(JobError, InputError):
    """The job found that its input cannot be used."""

    exit_code = 2


class JobUnsolvedError(JobError, UnsolvedError):
    """The solver's time ran out before any allocation within the budgets was found."""


class JobCancelledError(JobError):
    """The job was cancelled."""


def job_error(job: Job | str, failure: Failure | None) -> JobError:
    """Make the error that a job without a result raises.

    Args:
        job: The job, or its id.
        failure: Why it failed; None for a cancelled job.

    Returns:
        The error, to be raised.
    """
    name = job if isinstance(job, str) else job.id
    if failure is None:
        return JobCancelledError(f"job {name} was cancelled", job=name, failure=None)
    message = f"job {name} failed: {failure.message}"
    if failure.kind == "infeasible":
        return JobInfeasibleError(message, job=name, failure=failure, minimum=failure.minimum)
    kinds = {"bad_input": JobRefusedError, "unsolved": JobUnsolvedError}
    return kinds.get(failure.kind, JobError)(message, job=name, failure=failure)
