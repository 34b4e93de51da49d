from __future__ import annotations

import json

import pytest

from mpsearch import errors as library
from mpsearch.client import errors
from mpsearch.client.answers import checked, decoded, error_of, parsed, passing
from mpsearch.client.steps import Answer, Call
from mpsearch.schemas.uploads import Stored

CALL = Call("GET", "/v1/jobs/job_1/result")
TYPE = {"content-type": "application/problem+json"}


def problem(status: int, **members: object) -> Answer:
    members = {"title": "Title", "status": status, **members}
    return Answer(status, TYPE, json.dumps(members).encode())


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, errors.RefusedError, 2),
        (401, errors.UnauthorizedError, 2),
        (403, errors.ForbiddenError, 2),
        (404, errors.NotFoundError, 2),
        (405, errors.RefusedError, 2),
        (409, errors.ConflictError, 2),
        (410, errors.NotFoundError, 2),
        (413, errors.RefusedError, 2),
        (422, errors.RefusedError, 2),
        (429, errors.TooManyRequestsError, 4),
        (500, errors.ServerFaultError, 4),
        (501, errors.ServerFaultError, 4),
        (503, errors.UnreachableError, 4),
        (302, errors.AnswerError, 4),
    ],
)
def test_every_status_has_its_error_and_exit_code(status: int, kind: type, code: int) -> None:
    for answer in (problem(max(status, 400), detail="why"), Answer(status)):
        error = error_of(Answer(status, answer.headers, answer.content), CALL)
        assert type(error) is kind
        assert error.status == status
        assert error.exit_code == code
        assert isinstance(error, library.MpsearchError)


def test_refusals_are_input_errors_and_failures_are_dependency_errors() -> None:
    assert isinstance(error_of(problem(422), CALL), library.InputError)
    assert isinstance(error_of(problem(500), CALL), library.DependencyError)


def test_a_message_has_the_detail_and_every_fault_of_the_body() -> None:
    faults = [{"pointer": "#/budget/latency", "detail": "no number"}]
    error = error_of(problem(422, detail="cannot be used", errors=faults), CALL)
    assert str(error) == "cannot be used: #/budget/latency: no number"
    assert error.problem.errors[0].pointer == "#/budget/latency"


def test_a_fault_of_the_server_names_the_request() -> None:
    assert "(request abc)" in str(error_of(problem(500, detail="oh", request_id="abc"), CALL))


def test_an_answer_of_something_else_is_shown_in_part() -> None:
    error = error_of(Answer(404, {"content-type": "text/html"}, b"<html>" + b"x" * 1000), CALL)
    assert "GET /v1/jobs/job_1/result was answered with 404 Not Found: <html>" in str(error)
    assert len(str(error)) < 300
    assert "599" in str(error_of(Answer(599), CALL))


def test_a_redirect_says_where_to() -> None:
    error = error_of(Answer(301, {"location": "https://there/"}), CALL)
    assert "https://there/" in str(error)


def test_infeasible_carries_the_least_achievable() -> None:
    kind = "urn:mpsearch:problem:infeasible"
    error = error_of(problem(422, type=kind, detail="too small", minimum={"latency": 2.0}), CALL)
    assert isinstance(error, library.InfeasibleError)
    assert error.minimum == {"latency": 2.0}
    assert error.exit_code == 3
    assert isinstance(error_of(problem(422, type=kind), CALL), library.InfeasibleError)


def test_not_solved_in_time_is_no_outage() -> None:
    answer = problem(504, type="urn:mpsearch:problem:not-solved-in-time", detail="time")
    assert not passing(answer)
    assert isinstance(error_of(answer, CALL), library.UnsolvedError)
    assert passing(problem(504))


def test_a_quota_is_not_waited_for_and_a_rate_limit_is() -> None:
    ours = problem(429, type="urn:mpsearch:problem:quota-exceeded", detail="3 open jobs")
    assert not passing(ours)
    assert passing(Answer(429, {**TYPE, "retry-after": "3"}, ours.content))
    assert passing(Answer(429))  # of a proxy, which says nothing


FAILURES = [
    ("infeasible", errors.JobInfeasibleError, 3),
    ("bad_input", errors.JobRefusedError, 2),
    ("unsolved", errors.JobUnsolvedError, 4),
    ("memory", errors.JobError, 4),
    ("worker_died", errors.JobError, 4),
]


@pytest.mark.parametrize(("kind", "error_kind", "code"), FAILURES)
def test_a_failed_job_in_a_problem_is_its_failure(kind, error_kind, code) -> None:
    failure = {"kind": kind, "message": "why", "minimum": {"bops": 1.0}}
    error = error_of(problem(409, failure=failure), CALL)
    assert type(error) is error_kind
    assert error.exit_code == code
    assert error.job == "job_1"
    assert error.failure.message == "why"
    assert "job job_1 failed: why" in str(error)


def test_a_failure_of_another_version_is_still_a_conflict() -> None:
    answer = problem(409, failure={"kind": "new"}, detail="it failed")
    assert type(error_of(answer, CALL)) is errors.ConflictError


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"<html>", b'{"id": 3}', b"\xff"])
def test_an_answer_that_does_not_fit_is_told(content: bytes) -> None:
    with pytest.raises(errors.AnswerError, match="same version"):
        parsed(Stored, Answer(200, {}, content), CALL)


def test_json_without_a_schema() -> None:
    assert decoded(Answer(200, {}, b'{"a": [1]}'), CALL) == {"a": [1]}
    with pytest.raises(errors.AnswerError):
        decoded(Answer(200, {}, b"nope"), CALL)
    assert checked(Answer(204), CALL).status == 204


def test_every_error_of_the_client_is_public_and_drawn_in_the_tree() -> None:
    import mpsearch.client as client

    names = set(errors.__all__) - {"job_error"}
    assert names <= set(client.__all__)
    assert all(
        f"{name} " in errors.__doc__ + " " or f"{name}\n" in errors.__doc__ for name in names
    )
