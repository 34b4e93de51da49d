"""From a claim to an assignment: names that users gave become files of the service's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from mpsearch.budgets import parse_bytes
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.hardware.device import known_devices
from mpsearch.schemas.jobs import JobRequest
from mpsearch.schemas.uploads import Stored, StoredKind
from mpsearch_api.blobs.port import BlobStore
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.port import Assignment
from mpsearch_api.settings import Settings
from mpsearch_api.store.port import Claim

__all__ = ["Assigner", "Objects", "limits_of", "memory_of", "scoring_memory_of", "seconds_of"]

MIB = 2**20
MOST_SCORING_MEMORY = 2**60

_ID = re.compile(r"\b(?:mdl|dat)_[0-9a-z]{26}\b")


class Objects(Protocol):
    """What is asked of the catalog of stored objects."""

    def get_stored(self, tenant: str | None, name: str) -> Stored | None:
        """Read a stored object; None when there is none, or it is another tenant's."""
        ...


class Assigner:
    """Makes assignments."""

    def __init__(
        self, settings: Settings, objects: Objects, blobs: BlobStore, *, fetch: bool = True
    ) -> None:
        """Look up what assignments name.

        Args:
            settings: Of the service.
            objects: Uploaded models, data and cost tables.
            blobs: Their bytes.
            fetch: Whether jobs run on this machine, so that the bytes must be here.
        """
        self._fetch = fetch
        self._settings = settings
        self._objects = objects
        self._blobs = blobs

    def assign(self, claim: Claim, folder: Path, cache: Path) -> Assignment:
        """Collect everything that an attempt needs.

        Args:
            claim: The attempt.
            folder: Its own new folder.
            cache: The tenant's folder of cached work.

        Returns:
            The assignment.

        Raises:
            UnknownNameError: The tenant has no object of this name, or no such device is shipped.
            InputError: More memory or time is asked for than the service gives.
        """
        request = claim.request
        seconds_of(request, self._settings)
        files: dict[str, Path] = {}
        contents: dict[str, str] = {}
        used: list[Stored] = []

        def named(text: str, kind: StoredKind) -> str:
            def replaced(found: re.Match[str]) -> str:
                stored = self._stored(claim.tenant, found.group(), kind)
                name = f"{stored.id}.{stored.format}"
                contents[name] = stored.sha256
                if self._fetch:
                    files[name] = self._blobs.pinned(stored.sha256, folder)
                used.append(stored)
                return f"upload:{name}"

            spec = _ID.sub(replaced, text)
            if _ID.fullmatch(text) and used[-1].architecture:
                return f"{used[-1].architecture}@{spec}"
            return spec

        return Assignment(
            claim=claim,
            model=named(request.model, "model"),
            data=named(request.data, "dataset"),
            files=files,
            hardware=self._hardware(claim, folder, contents),
            contents=contents,
            folder=folder,
            cache=cache,
            memory=memory_of(request, self._settings),
            # The door takes archives, and jobs that name them, from trusted keys alone.
            trusted=any(stored.format == "pt2" for stored in used),
            downloads=self._settings.hub_downloads,
        )

    def _stored(self, tenant: str, name: str, kind: StoredKind) -> Stored:
        stored = self._objects.get_stored(tenant, name)
        if stored is None or stored.kind != kind:
            raise UnknownNameError(kind, name, [])
        return stored

    def _hardware(self, claim: Claim, folder: Path, contents: dict[str, str]) -> str | Path | None:
        # The link's suffix tells the table's type. What is neither a shipped device nor stored
        # never gets to whatever opens files.
        name = claim.request.hardware
        if name is None or name in known_devices():
            return name
        if not name.startswith("hw_"):
            raise UnknownNameError("hardware", name, known_devices())
        stored = self._stored(claim.tenant, name, "hardware")
        link = folder / f"hardware.{stored.format}"
        contents[link.name] = stored.sha256
        if self._fetch:
            link.symlink_to(self._blobs.pinned(stored.sha256, folder).resolve())
        return link


def memory_of(request: JobRequest, settings: Settings) -> int:
    """Read how much memory a job asks for.

    Args:
        request: The job.
        settings: With the most that a job may have.

    Returns:
        Bytes.

    Raises:
        InputError: Not an amount of memory, or too much or too little.
    """
    asked = request.execution.memory
    size = parse_bytes("execution.memory", asked)
    if not 64 * MIB <= size <= settings.worker_memory:
        raise InputError(
            f"execution.memory {asked} is not within 64 MiB and the "
            f"{settings.worker_memory / MIB:g} MiB that this service gives"
        )
    return size


def scoring_memory_of(request: JobRequest) -> int | None:
    """Read how much memory scoring may hold beside the model.

    Args:
        request: The job.

    Returns:
        Bytes; None: batches stay as they are.

    Raises:
        InputError: Not a positive amount of memory.
    """
    asked = request.memory_limit
    if asked is None:
        return None
    size = parse_bytes("memory_limit", asked)
    if size > MOST_SCORING_MEMORY:
        raise InputError(f"memory_limit {asked} is not within 1 B and 1 EiB")
    return size


def seconds_of(request: JobRequest, settings: Settings) -> float:
    """Read how much time a job asks for.

    Args:
        request: The job.
        settings: With the most that a job may have.

    Returns:
        Seconds.

    Raises:
        InputError: Too much.
    """
    asked = request.execution.time_limit
    if asked > settings.worker_time:
        raise InputError(
            f"execution.time_limit {asked:g} s is more than the {settings.worker_time:g} s that "
            "this service gives"
        )
    return asked


def limits_of(assignment: Assignment, settings: Settings) -> Limits:
    """Say what an assignment may use.

    Args:
        assignment: What will run.
        settings: Of the service.

    Returns:
        The limits; archives run only where they can be cut off from the network.
    """
    request = assignment.claim.request
    return Limits(
        memory=assignment.memory,
        seconds=seconds_of(request, settings),
        cpus=request.execution.cpus,
        niceness=settings.niceness,
        network=assignment.downloads and not assignment.trusted,
        isolated=assignment.trusted,
        gpus=request.execution.gpus,
    )
