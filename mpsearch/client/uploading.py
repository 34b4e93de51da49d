"""Uploading in parts, which goes on where it stopped when the service comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mpsearch.client.answers import checked, error_of, parsed, passing
from mpsearch.client.errors import NotFoundError, UploadError
from mpsearch.client.retrying import Backoff, sent
from mpsearch.client.sources import Source, sha256_of
from mpsearch.client.steps import (
    Answer,
    Call,
    Flow,
    LinkError,
    call_of,
    in_thread,
    sent_once,
)
from mpsearch.schemas.uploads import Upload

__all__ = ["OnUpload", "Parcel", "uploaded"]

PART = 8 * 2**20
"""Bytes sent at once; what is lost at most when the connection breaks."""
STARTS = 3
"""Times an upload is begun anew when the service has forgotten it."""

OnUpload = Callable[[int, int], None]
"""Called with the bytes that the service has, and the bytes in all."""


@dataclass(frozen=True)
class Parcel:
    """A source and its hash.

    Attributes:
        source: The bytes.
        sha256: Of all of them, in hex.
    """

    source: Source
    sha256: str

    @classmethod
    def of(cls, source: Source) -> Flow[Parcel]:
        """Hash a source, as a flow.

        Args:
            source: The bytes.

        Yields:
            The work.

        Returns:
            The parcel.
        """
        return cls(source, (yield from in_thread(partial(sha256_of, source))))


def uploaded(parcel: Parcel, backoff: Backoff, on_upload: OnUpload | None = None) -> Flow[Upload]:
    """Send a parcel; after an interruption, go on at the byte the service has.

    Args:
        parcel: What to send.
        backoff: Failures are counted here.
        on_upload: Told about progress.

    Yields:
        The steps.

    Returns:
        The complete upload.

    Raises:
        NotFoundError: The service forgot the upload again and again.
        UploadError: It ended with another size or hash than was sent.
    """
    start = 1
    while True:
        upload = yield from _begun(parcel, backoff)
        try:
            yield from _all_parts(parcel, upload, backoff, on_upload)
            done = yield from _state(upload.id, backoff.fresh())
        except NotFoundError:
            # The service lost its database, or took too long to come back.
            if start == STARTS:
                raise
            start += 1
            continue
        if not done.complete or done.sha256 not in {None, parcel.sha256}:
            raise UploadError(
                f"upload {done.id} of {parcel.source.name} ended with {done.offset:,} bytes and "
                f"sha256 {done.sha256}, not {parcel.source.size:,} and {parcel.sha256}"
            )
        return done


def _begun(parcel: Parcel, backoff: Backoff) -> Flow[Upload]:
    body = json.dumps({"size": parcel.source.size, "sha256": parcel.sha256}).encode()
    call = Call("POST", "/v1/uploads", headers={"content-type": "application/json"}, content=body)
    return parsed(Upload, (yield from sent(call, backoff)), call)


def _state(upload: str, backoff: Backoff) -> Flow[Upload]:
    call = call_of("GET", f"/v1/uploads/{upload}")
    return parsed(Upload, (yield from sent(call, backoff)), call)


def _all_parts(
    parcel: Parcel, upload: Upload, backoff: Backoff, on_upload: OnUpload | None
) -> Flow[None]:
    size = parcel.source.size
    offset = upload.offset
    while offset < size:
        if on_upload is not None:
            on_upload(offset, size)
        part = yield from in_thread(partial(parcel.source.read, offset, PART))
        call = Call(
            "PATCH",
            f"/v1/uploads/{upload.id}",
            headers={"upload-offset": str(offset), "content-type": "application/octet-stream"},
            content=part,
        )
        try:
            answer = yield from sent_once(call)
        except LinkError as error:
            yield from backoff.after(error, call)
            offset = (yield from _state(upload.id, backoff.fresh())).offset
            continue
        if passing(answer):
            yield from backoff.after(answer, call)
            offset = (yield from _state(upload.id, backoff.fresh())).offset
            continue
        if answer.status != 409:
            checked(answer, call)
        progressed = _offset(answer, call)
        if progressed > offset:
            backoff.reset()
        else:
            # An earlier try may still be on its way into the service, which then is busy with it.
            yield from backoff.after(answer, call)
        offset = progressed
    if on_upload is not None:
        on_upload(size, size)


def _offset(answer: Answer, call: Call) -> int:
    text = answer.headers.get("upload-offset", "")
    if text.isascii() and text.isdigit():
        return int(text)
    if not answer.ok:
        raise error_of(answer, call)
    raise UploadError(
        f"{call.path}: the service did not say how many bytes it has", status=answer.status
    )
