"""Uploading models, data and cost tables, and whole searches that begin with files here."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsearch.client.answers import parsed, passing
from mpsearch.client.errors import JobError, ServiceError, UploadError, job_error
from mpsearch.client.operations import COLLECTIONS, JSON, Operations
from mpsearch.client.requests import JobFields, job_request
from mpsearch.client.retrying import sent
from mpsearch.client.sources import (
    Local,
    Source,
    local_data,
    local_hardware,
    local_model,
)
from mpsearch.client.steps import Call, Flow, LinkError, in_thread, sent_once, told
from mpsearch.client.uploading import OnUpload, Parcel, uploaded
from mpsearch.errors import InputError
from mpsearch.schemas.jobs import Event, Job, JobRequest
from mpsearch.schemas.uploads import Stored, StoredKind

if TYPE_CHECKING:
    from mpsearch.schemas import Allocation

__all__ = [
    "OnEvent",
    "requested",
    "searched",
    "stored_file",
    "stored_table",
    "submitted",
]

OnEvent = Callable[[Event], None]
"""Called with every event of a job, once and in order; in an `AsyncClient` it must not block."""

LOOKED_THROUGH = 1000
"""Stored objects, newest first, among which one with the same bytes is looked for."""

_TABLE_TYPES = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".csv": "text/csv",
}


def stored_file(
    operations: Operations,
    kind: StoredKind,
    source: Source,
    architecture: str | None = None,
    on_upload: OnUpload | None = None,
    *,
    reuse: bool = False,
) -> Flow[Stored]:
    """Upload a model or data set.

    Args:
        operations: The requests of the service.
        kind: What it is.
        source: Its bytes.
        architecture: For weights: what they belong to.
        on_upload: Told about progress.
        reuse: Take what is stored already where it has the same bytes, name and architecture.

    Yields:
        The steps.

    Returns:
        What jobs name by its id.

    Raises:
        UploadError: The service stored other bytes.
    """
    parcel = yield from Parcel.of(source)
    if reuse:
        known = yield from _known(operations, kind, parcel, architecture)
        if known is not None:
            return known
    upload = yield from uploaded(parcel, operations.backoff(), on_upload)
    body = {"upload": upload.id, "name": source.name}
    if architecture is not None:
        body["architecture"] = architecture
    call = Call("POST", f"/v1/{COLLECTIONS[kind]}", headers=JSON, content=json.dumps(body).encode())
    backoff = operations.backoff()
    while True:
        try:
            answer = yield from sent_once(call)
        except LinkError as error:
            yield from backoff.after(error, call)
            # It may have been stored, and only the answer lost; a second one would be a copy.
            stored = yield from _known(operations, kind, parcel, architecture)
            if stored is not None:
                return stored
            continue
        if not passing(answer):
            break
        yield from backoff.after(answer, call)
    stored = parsed(Stored, answer, call)
    if stored.sha256 != parcel.sha256:
        raise UploadError(
            f"{stored.id} has sha256 {stored.sha256}, but {source.name} has {parcel.sha256}"
        )
    return stored


def _known(
    operations: Operations, kind: StoredKind, parcel: Parcel, architecture: str | None
) -> Flow[Stored | None]:
    found: list[Stored] = []
    yield from told(operations.stored(kind, LOOKED_THROUGH), found.append)
    wanted = (parcel.sha256, parcel.source.name, architecture)
    same = (one for one in found if (one.sha256, one.name, one.architecture) == wanted)
    return next(same, None)


def stored_table(operations: Operations, source: Source) -> Flow[Stored]:
    """Upload a cost table.

    Args:
        operations: The requests of the service.
        source: Its bytes; the name's suffix says what they are.

    Yields:
        The steps.

    Returns:
        What jobs name by its id.

    Raises:
        InputError: The suffix is none of a table's.
    """
    suffix = Path(source.name).suffix.lower()
    if suffix not in _TABLE_TYPES:
        raise InputError(f"{source.name}: a cost table is a .json, .yaml or .csv file")
    content = yield from in_thread(partial(source.read, 0, source.size))
    call = Call(
        "POST",
        "/v1/hardware",
        {"name": source.name},
        {"content-type": _TABLE_TYPES[suffix]},
        content,
    )
    return parsed(Stored, (yield from sent(call, operations.backoff())), call)


def requested(
    operations: Operations,
    model: JobRequest | str | Path | Stored,
    data: object,
    fields: JobFields,
    on_upload: OnUpload | None = None,
) -> Flow[JobRequest]:
    """Put a request together; what is local of it is uploaded, unless it is stored already.

    Args:
        operations: The requests of the service.
        model: A whole request; or a name or spec, an uploaded model, or a file here: `net.onnx`,
            `ARCHITECTURE@weights.safetensors`.
        data: A name or spec, uploaded data, a `.npz` or `.safetensors` file here, or arrays.
        fields: Everything else; `hardware` may be a `.json`, `.yaml` or `.csv` file here.
        on_upload: Told about progress.

    Yields:
        The steps.

    Returns:
        The request, which names nothing local.

    Raises:
        InputError: A whole request and fields beside it, or a model without data.
    """
    if isinstance(model, JobRequest):
        if data is not None or fields:
            raise InputError("a JobRequest has its data and everything else in it; give it alone")
        return model
    if data is None:
        raise InputError("give the data set to score and verify on: data='digits', a file, arrays")
    # Everything that can be refused here is, before the first byte is sent.
    weights = None if isinstance(model, Stored) else local_model(model)
    arrays = None if isinstance(data, Stored) else local_data(data)
    hardware = fields.get("hardware")
    table = None if hardware is None else local_hardware(hardware)
    request = job_request(_name_of(model), _name_of(data), fields)
    changes: dict[str, Any] = {}
    if weights is not None:
        changes["model"] = (yield from _stored_local(operations, weights, on_upload)).id
    if arrays is not None:
        changes["data"] = (
            yield from stored_file(operations, "dataset", arrays, None, on_upload, reuse=True)
        ).id
    if table is not None:
        changes["hardware"] = (yield from stored_table(operations, table)).id
    return request.model_copy(update=changes)


def submitted(operations: Operations, request: Flow[JobRequest], key: str | None) -> Flow[Job]:
    """Queue a job.

    Args:
        operations: The requests of the service.
        request: Puts the request together.
        key: Idempotency key; by default a new one.

    Yields:
        The steps.

    Returns:
        The job.
    """
    return (yield from operations.submit((yield from request), key))


def _name_of(given: object) -> str:
    if isinstance(given, Stored):
        return given.id
    return str(given) if isinstance(given, str | Path) else "arrays"


def _stored_local(operations: Operations, local: Local, on_upload: OnUpload | None) -> Flow[Stored]:
    return stored_file(operations, "model", local.source, local.architecture, on_upload, reuse=True)


def searched(
    operations: Operations,
    request: Flow[JobRequest],
    key: str | None,
    *,
    timeout: float | None,
    on_event: OnEvent | None,
) -> Flow[Allocation]:
    """Run a job and fetch its result.

    Args:
        operations: The requests of the service.
        request: Puts the request together.
        key: Idempotency key; by default a new one.
        timeout: Seconds to wait for the end.
        on_event: Called with every event.

    Yields:
        The steps.

    Returns:
        The allocation.

    Raises:
        ServiceError: The service failed, or refused.
        JobError: The job ended without a result.
    """
    job = yield from submitted(operations, request, key)
    try:
        ended: Job = yield from told(operations.follow(job, after=0, timeout=timeout), on_event)
        if ended.status != "succeeded":
            failure = job_error(ended, ended.failure)
            raise failure
        return (yield from operations.result(ended))
    except ServiceError as error:
        if not isinstance(error, JobError):
            error.add_note(f"the job is {job.id}")
        raise
