"""Refusals that only a service knows, beside those of `mpsearch.errors`.

```text
MpsearchError
└── ServiceError             answered with its own status code
    ├── IdempotencyError     409   the key was used with another request
    ├── StateError           409   not while the object is in this state
    ├── QuotaError           429   too many open jobs, too many bytes, too many requests
    ├── TooLargeError        413   more bytes than are taken
    ├── MissingBlobError     404   stored bytes that are not there
    ├── NotAllowedError      403   the key lacks the scope
    └── UnavailableError     503   the database or the blob store does not answer
```
"""

from __future__ import annotations

from mpsearch.errors import MpsearchError

__all__ = [
    "IdempotencyError",
    "MissingBlobError",
    "NotAllowedError",
    "QuotaError",
    "ServiceError",
    "StateError",
    "TooLargeError",
    "UnavailableError",
]


class ServiceError(MpsearchError):
    """The service will not do this; `status` is the HTTP status of the answer."""

    status = 400
    title = "Refused"


class IdempotencyError(ServiceError):
    """The idempotency key was used with another request."""

    status = 409
    title = "Idempotency key already used"


class StateError(ServiceError):
    """The object is not in a state that allows this."""

    status = 409
    title = "Not in this state"


class QuotaError(ServiceError):
    """More than the key or the server allows; `retry_after` in seconds where waiting helps."""

    status = 429
    title = "Quota exceeded"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        """Keep when to try again beside the message.

        Args:
            message: What a person should read.
            retry_after: Seconds.
        """
        super().__init__(message)
        self.retry_after = retry_after


class TooLargeError(ServiceError):
    """More bytes than are taken."""

    status = 413
    title = "Too large"


class MissingBlobError(ServiceError):
    """Stored bytes that are not there."""

    status = 404
    title = "Not found"


class NotAllowedError(ServiceError):
    """The API key lacks the scope."""

    status = 403
    title = "Not allowed"


class UnavailableError(ServiceError):
    """The database or the blob store does not answer; whether a write took place is unknown."""

    status = 503
    title = "Unavailable"
