"""Reading answers: typed results from success, typed errors from problem documents."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from mpsearch.client.errors import (
    AnswerError,
    ConflictError,
    ForbiddenError,
    InfeasibleRequestError,
    NotFoundError,
    RefusedError,
    ServerFaultError,
    ServiceError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    UnsolvedRequestError,
    job_error,
)
from mpsearch.client.steps import Answer, Call
from mpsearch.schemas.jobs import Failure
from mpsearch.schemas.problems import Problem

__all__ = ["checked", "decoded", "error_of", "parsed", "passing", "retry_after"]

Model = TypeVar("Model", bound=BaseModel)

_BY_STATUS: Mapping[int, type[ServiceError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: NotFoundError,
    412: ConflictError,
    502: UnreachableError,
    503: UnreachableError,
    504: UnreachableError,
}
_BY_TYPE: Mapping[str, type[ServiceError]] = {
    "infeasible": InfeasibleRequestError,
    "not-solved-in-time": UnsolvedRequestError,
    "a-dependency-is-missing-or-failed": ServerFaultError,
}
"""Last part of a problem's type -> what it means, where the status alone does not tell."""
_PASSING = frozenset({429, 502, 503, 504})
"""Statuses that may be gone the next time: rate limits, restarts, overload."""
_SHOWN = 200


def passing(answer: Answer) -> bool:
    """Tell whether the same request may well succeed later.

    Args:
        answer: The answer.

    Returns:
        Whether its status is one that passes, and its problem none that stays.
    """
    if answer.status not in _PASSING:
        return False
    problem = _problem(answer)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS and problem is not None:
        # The service says when to come again where waiting helps; a quota is not of that kind.
        ours = problem.type.startswith("urn:mpsearch:")
        return not ours or retry_after(answer) is not None
    return _type_of(problem) not in _BY_TYPE


def checked(answer: Answer, call: Call) -> Answer:
    """Let a success pass.

    Args:
        answer: The answer.
        call: What it answers.

    Returns:
        The same answer.

    Raises:
        ServiceError: It is not a success; see `error_of`.
    """
    if not answer.ok:
        error = error_of(answer, call)
        raise error
    return answer


def parsed(kind: type[Model], answer: Answer, call: Call) -> Model:
    """Read a typed result.

    Args:
        kind: What the answer holds.
        answer: The answer, of any status.
        call: What it answers.

    Returns:
        The result.

    Raises:
        AnswerError: The body does not fit the schema.
    """
    content = checked(answer, call).content
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        fault = _unreadable(call, answer, f"{kind.__name__}: {_first_fault(error)}")
        raise fault from error


_ANYTHING = TypeAdapter[Any](Any)


def decoded(answer: Answer, call: Call) -> Any:  # noqa: ANN401
    """Read JSON that has no schema of its own.

    Args:
        answer: The answer, of any status.
        call: What it answers.

    Returns:
        The JSON value.

    Raises:
        AnswerError: The body is not JSON.
    """
    content = checked(answer, call).content
    try:
        return _ANYTHING.validate_json(content)
    except ValidationError as error:
        fault = _unreadable(call, answer, _first_fault(error))
        raise fault from error


def error_of(answer: Answer, call: Call) -> ServiceError:
    """Turn an answer that is not a success into the error it means.

    Args:
        answer: The answer.
        call: What it answers.

    Returns:
        The error, to be raised.
    """
    problem = _problem(answer)
    message = _message(answer, call, problem)
    known: dict[str, Any] = {"status": answer.status, "problem": problem}
    failure = _failure(problem)
    if failure is not None:
        return job_error(_job_in(call.path), failure)
    if answer.status < 400:
        return AnswerError(message, **known)
    if problem is not None and problem.minimum is not None:
        return InfeasibleRequestError(message, minimum=problem.minimum, **known)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return TooManyRequestsError(message, retry_after=retry_after(answer), **known)
    kind = _BY_TYPE.get(_type_of(problem)) or _BY_STATUS.get(answer.status)
    if kind is None:
        kind = RefusedError if answer.status < 500 else ServerFaultError
    return kind(message, **known)


def retry_after(answer: Answer, now: float | None = None) -> float | None:
    """Read when the service wants to be asked again.

    Args:
        answer: The answer.
        now: Unix time, seconds, that a date is compared with; by default the present.

    Returns:
        Seconds from now, at least 0; None when the header is missing or cannot be read.
    """
    text = answer.headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


def _problem(answer: Answer) -> Problem | None:
    if "json" not in answer.media_type:
        return None
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        return None  # the error is made from the status and the body instead


def _type_of(problem: Problem | None) -> str:
    return "" if problem is None else problem.type.rpartition(":")[2]


def _failure(problem: Problem | None) -> Failure | None:
    """Find the failed job's record that a problem carries, if it does."""
    found = None if problem is None else problem.extra().get("failure")
    if found is None:
        return None
    try:
        return Failure.model_validate(found)
    except ValidationError:
        return None  # written by another version; the problem's detail says it in words


def _job_in(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[parts.index("jobs") + 1] if "jobs" in parts[:-1] else ""


def _message(answer: Answer, call: Call, problem: Problem | None) -> str:
    if problem is None:
        said = answer.content[:_SHOWN].decode("utf-8", "replace").strip()
        where = f"{call.method} {call.path}"
        target = answer.headers.get("location")
        if answer.status < 400 and target:
            return f"{where} was answered with {answer.status}, see {target}; give that server"
        return f"{where} was answered with {_phrase(answer.status)}" + (f": {said}" if said else "")
    message = problem.detail or problem.title
    faults = [f"{fault.pointer}: {fault.detail}" for fault in problem.errors]
    if faults:
        message += ": " + "; ".join(faults)
    if problem.status >= 500 and problem.request_id:
        message += f" (request {problem.request_id})"
    return message


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _unreadable(call: Call, answer: Answer, why: str) -> AnswerError:
    return AnswerError(
        f"{call.method} {call.path}: the answer cannot be read ({why}); is this an mpsearch "
        "service of the same version?",
        status=answer.status,
    )


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(step) for step in fault["loc"])
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])
