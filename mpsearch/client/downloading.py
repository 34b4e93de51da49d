"""Downloading what a job produced, to files that are whole or not there at all."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from mpsearch.client.answers import checked, passing
from mpsearch.client.asking import Reference, id_of
from mpsearch.client.errors import AnswerError
from mpsearch.client.operations import Operations
from mpsearch.client.steps import Call, Flow, LinkError, call_of, in_thread, opened, read
from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Artifact, Job

__all__ = [
    "ReportFormat",
    "all_downloaded",
    "artifact_downloaded",
    "downloaded",
    "export_call",
    "report_call",
]

ReportFormat = Literal["html", "png", "csv", "txt"]

_ANY = {"accept": "*/*"}


def report_call(reference: Reference, form: ReportFormat) -> Call:
    """Write the request of a job's report.

    Args:
        reference: Which job.
        form: In which form.

    Returns:
        The request.
    """
    wanted = None if form == "html" else form
    call = call_of("GET", f"/v1/jobs/{id_of(reference)}/report", format=wanted)
    return replace(call, headers=_ANY)


def export_call(reference: Reference, target: str) -> Call:
    """Write the request of a job's allocation in another tool's language.

    Args:
        reference: Which job.
        target: Name of the tool.

    Returns:
        The request.
    """
    call = call_of("GET", f"/v1/jobs/{id_of(reference)}/export", to=target)
    return replace(call, headers=_ANY)


def artifact_downloaded(
    operations: Operations, reference: Reference, name: str, target: str | Path
) -> Flow[Path]:
    """Download one artifact, and check its hash.

    Args:
        operations: The requests of the service.
        reference: Which job.
        name: Which artifact.
        target: File to write, or a folder that exists, in which the artifact keeps its name.

    Yields:
        The steps.

    Returns:
        The file written.

    Raises:
        InputError: The job has no such artifact.
    """
    job = yield from operations.job(reference)
    found = {artifact.name: artifact for artifact in job.artifacts}
    if name not in found:
        known = ", ".join(found) or f"it has none, being {job.status}"
        raise InputError(f"job {job.id} has no artifact {name!r} ({known})")
    path = Path(target)
    if path.is_dir():
        path /= _file_name(found[name])
    return (yield from _fetched(operations, job, found[name], path))


def all_downloaded(operations: Operations, reference: Reference, folder: Path) -> Flow[list[Path]]:
    """Download every artifact of a job.

    Args:
        operations: The requests of the service.
        reference: Which job.
        folder: Where to write; made if it is missing.

    Yields:
        The steps.

    Returns:
        The files written.
    """
    job = yield from operations.job(reference)
    written = []
    for artifact in job.artifacts:
        target = folder / _file_name(artifact)
        written.append((yield from _fetched(operations, job, artifact, target)))
    return written


def _file_name(artifact: Artifact) -> str:
    """Give the name only where it stays inside the folder, whatever the service says."""
    name = artifact.name
    if not name or name in {".", ".."} or set(name) & {"/", "\\", "\0", ":"}:
        raise AnswerError(f"the service names an artifact {name!r}, which is no file name")
    return name


def _fetched(operations: Operations, job: Job, artifact: Artifact, target: Path) -> Flow[Path]:
    call = call_of("GET", f"/v1/jobs/{id_of(job)}/artifacts/{quote(artifact.name, safe='')}")
    return downloaded(operations, replace(call, headers=_ANY), target, sha256=artifact.sha256)


def downloaded(
    operations: Operations, call: Call, target: str | Path, *, sha256: str | None = None
) -> Flow[Path]:
    """Write the answer of a request to a file.

    Args:
        operations: The requests of the service.
        call: The request.
        target: File to write; missing folders are made.
        sha256: What the bytes must hash to, in hex.

    Yields:
        The steps.

    Returns:
        The file written.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(target)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name")
    partial_file = path.with_name(f".{path.name}.{os.getpid()}.partial")
    backoff = operations.backoff()
    try:
        yield from in_thread(partial(path.parent.mkdir, parents=True, exist_ok=True))
        while True:
            try:
                answer = yield from opened(call)
                if not passing(answer):
                    checked(answer, call)
                    yield from _written(call, partial_file, sha256)
                    yield from in_thread(partial(partial_file.replace, path))
                    return path
                trouble: LinkError | None = None
            except LinkError as error:
                trouble = error
            yield from backoff.after(trouble or answer, call)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial_file.unlink(missing_ok=True)


def _written(call: Call, path: Path, sha256: str | None) -> Flow[None]:
    """Write the open answer; a broken stream is begun anew by the caller."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while (part := (yield from read())) is not None:
            digest.update(part)
            yield from in_thread(partial(file.write, part))
    if sha256 is not None and digest.hexdigest() != sha256:
        raise AnswerError(
            f"{call.path}: the bytes hash to {digest.hexdigest()}, and the job says {sha256}"
        )
