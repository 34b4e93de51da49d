"""What the client can do, as flows: one function for every request of the service."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from mpsearch.client.answers import checked, decoded, parsed
from mpsearch.client.asking import Asking, Reference, id_of
from mpsearch.client.errors import ConflictError, job_error
from mpsearch.client.requests import Budgets, made
from mpsearch.client.retrying import Backoff, sent
from mpsearch.client.steps import Call, Emit, Flow, call_of, mapped
from mpsearch.client.watching import Follow, follow
from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Job, JobRequest, JobStatus, ResolveRequest
from mpsearch.schemas.uploads import HardwareEntry, Stored, StoredKind

if TYPE_CHECKING:
    from mpsearch.schemas import Allocation, Costs, Frontier, Profile

__all__ = ["Operations", "problem_of"]

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
JSON = {"content-type": "application/json"}
COLLECTIONS: Mapping[StoredKind, str] = {
    "model": "models",
    "dataset": "datasets",
    "hardware": "hardware",
}
_BY_PREFIX = {
    "job": "jobs",
    "mdl": "models",
    "dat": "datasets",
    "hw": "hardware",
    "upl": "uploads",
}


@dataclass(frozen=True)
class Operations(Asking):
    """The requests of the service."""

    def devices(self, most: int | None, origin: str | None = None) -> Flow[None]:
        """Hand out what a job may name as its hardware: shipped devices, then uploaded tables.

        Args:
            most: How many; None: all.
            origin: Only `shipped` or `uploaded` ones.

        Returns:
            The flow.
        """
        return self.pages(HardwareEntry, "/v1/hardware", most, origin=origin)

    def submit(self, request: JobRequest, key: str | None) -> Flow[Job]:
        """Queue a job, once however often the request is sent.

        Args:
            request: What to run.
            key: Idempotency key; by default a new one.

        Yields:
            The steps.

        Returns:
            The job.
        """
        call = Call(
            "POST",
            "/v1/jobs",
            headers=JSON | {"idempotency-key": key or uuid.uuid4().hex},
            content=request.model_dump_json(exclude_unset=True).encode(),
        )
        return parsed(Job, (yield from sent(call, self.backoff())), call)

    def jobs(self, status: JobStatus | None, most: int | None) -> Flow[None]:
        """Hand out jobs, newest first.

        Args:
            status: Only those.
            most: How many; None: all.

        Returns:
            The flow.
        """
        return self.pages(Job, "/v1/jobs", most, status=status)

    def stored(self, kind: StoredKind, most: int | None) -> Flow[None]:
        """Hand out uploaded models, data sets or cost tables, newest first.

        Args:
            kind: Which.
            most: How many; None: all.

        Yields:
            The steps, and an `Emit` for every `Stored`.

        Returns:
            Nothing.
        """
        if kind != "hardware":
            return (yield from self.pages(Stored, f"/v1/{COLLECTIONS[kind]}", most))
        uploaded = self.devices(most, "uploaded")
        return (yield from mapped(uploaded, lambda entry: Emit(entry.stored)))

    def job(self, reference: Reference) -> Flow[Job]:
        """Read a job.

        Args:
            reference: Which.

        Returns:
            The flow.
        """
        return self.get(Job, f"/v1/jobs/{id_of(reference)}")

    def follow(self, reference: Reference, *, after: int, timeout: float | None) -> Flow[Job]:
        """Follow a job until it has ended; see `watching.follow`.

        Args:
            reference: Which.
            after: Id of the last event that is known.
            timeout: Seconds; None: no limit.

        Returns:
            The flow.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        return follow(
            Follow(id_of(reference), self.retries, self.server, after, deadline, self.contact)
        )

    def document(
        self, kind: type[Model], reference: Reference, name: str, **query: object
    ) -> Flow[Model]:
        """Read a document that a job produced.

        Args:
            kind: What it is.
            reference: Which job.
            name: `result`, `frontier`, `profile` or `costs`.
            **query: Query parameters.

        Returns:
            The flow.
        """
        path = f"/v1/jobs/{id_of(reference)}/{name}"
        return self.explained(reference, self.get(kind, path, **query))

    def explained(self, reference: Reference, flow: Flow[Result]) -> Flow[Result]:
        """Say of a job that ended without a result why it did, instead of that it has none.

        Args:
            reference: Which job.
            flow: What needs its result.

        Yields:
            The steps.

        Returns:
            The result of the flow.

        Raises:
            ConflictError: The job has not ended.
            JobError: It failed or was cancelled.
        """
        try:
            return (yield from flow)
        except ConflictError as error:
            job = yield from self.job(reference)
            if not job.ended or job.status == "succeeded":
                raise
            failure = job_error(job, job.failure)
            raise failure from error

    def result(self, reference: Reference) -> Flow[Allocation]:
        """Read a job's allocation."""
        from mpsearch.schemas import Allocation

        return self.document(Allocation, reference, "result")

    def profile(self, reference: Reference) -> Flow[Profile]:
        """Read a job's profile."""
        from mpsearch.schemas import Profile

        return self.document(Profile, reference, "profile")

    def costs(self, reference: Reference) -> Flow[Costs]:
        """Read a job's costs."""
        from mpsearch.schemas import Costs

        return self.document(Costs, reference, "costs")

    def frontier(self, reference: Reference, resource: str | None) -> Flow[Frontier]:
        """Read a job's frontier.

        Args:
            reference: Which job.
            resource: Between predicted loss and which resource; None: the job's first budget.

        Returns:
            The flow.
        """
        from mpsearch.schemas import Frontier

        return self.document(Frontier, reference, "frontier", resource=resource)

    def resolve(
        self, reference: Reference, budget: Budgets, settings: Mapping[str, Any]
    ) -> Flow[Allocation]:
        """Solve a finished job's scores for another budget.

        Args:
            reference: Which job.
            budget: Resource -> amount.
            settings: Other fields of `ResolveRequest`.

        Returns:
            The flow; nothing of its allocation was measured.
        """
        from mpsearch.schemas import Allocation

        request = made(ResolveRequest, {"budget": dict(budget), **settings})
        call = Call(
            "POST",
            f"/v1/jobs/{id_of(reference)}/solve",
            headers=JSON,
            content=request.model_dump_json(exclude_unset=True).encode(),
        )

        def solving() -> Flow[Allocation]:
            return parsed(Allocation, (yield from sent(call, self.backoff())), call)

        return self.explained(reference, solving())

    def solve_problem(
        self, problem: Mapping[str, Any], settings: Mapping[str, object]
    ) -> Flow[dict[str, Any]]:
        """Solve a problem file.

        Args:
            problem: The problem, as its file has it.
            settings: `method`, `gap`, `time_limit`, `seed`; those that are None are left out.

        Yields:
            The steps.

        Returns:
            The solution, as `Solution.to_dict` writes it.
        """
        query = call_of("POST", "/v1/solve", **settings).query
        call = Call("POST", "/v1/solve", query, JSON, json.dumps(problem).encode())
        found: dict[str, Any] = decoded((yield from sent(call, self.backoff())), call)
        return found

    def cancel(self, reference: Reference) -> Flow[Job]:
        """End a job.

        Args:
            reference: Which.

        Yields:
            The steps.

        Returns:
            The job as it stands.
        """
        call = call_of("POST", f"/v1/jobs/{id_of(reference)}/cancel")
        return parsed(Job, (yield from sent(call, self.backoff())), call)

    def delete(self, reference: Reference) -> Flow[None]:
        """Delete a job, model, data set, cost table or unfinished upload.

        Args:
            reference: Which; its id says what it is.

        Yields:
            The steps.

        Returns:
            Nothing.

        Raises:
            InputError: The id is none of the service's.
            ServiceError: The service refused.
        """
        name = id_of(reference)
        prefix = name.partition("_")[0]
        if prefix not in _BY_PREFIX:
            raise InputError(
                f"cannot delete {name!r}: ids begin with {', '.join(f'{p}_' for p in _BY_PREFIX)}"
            )
        call = call_of("DELETE", f"/v1/{_BY_PREFIX[prefix]}/{name}")
        backoff = self.backoff()
        answer = yield from sent(call, backoff)
        if answer.status == 404 and backoff.links_lost:
            return  # an earlier try was carried out, and only its answer was lost
        checked(answer, call)

    def ready(self) -> Flow[None]:
        """Ask once, without trying again, whether the service takes requests.

        Yields:
            The steps.

        Returns:
            Nothing.
        """
        call = call_of("GET", "/readyz")
        once = Backoff(replace(self.retries, patience=0.0), self.server, self.contact)
        checked((yield from sent(call, once)), call)


def problem_of(given: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """Read a problem from a file, or take it as it is.

    Args:
        given: The problem, or the path of its JSON file.

    Returns:
        The problem.

    Raises:
        InputError: There is no such file, or it holds no JSON object.
    """
    if isinstance(given, Mapping):
        return given
    try:
        found = json.loads(Path(given).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read problem file {given}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{given} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{given} holds a {type(found).__name__}; a problem is an object")
    return found
