"""What the dispatcher asks of an executor; `local` and `ray` are behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mpsearch.schemas.jobs import Failure
from mpsearch_api.store.port import Claim, Update

__all__ = ["Assignment", "Ended", "Executor", "Produced", "Run"]


@dataclass(frozen=True)
class Assignment:
    """One attempt of a job with everything it needs, as paths and values that cross processes.

    Attributes:
        claim: The attempt.
        model: Model spec that names only what the service vouches for.
        data: Data spec, likewise.
        files: Names that those specs use -> local files of the service's own.
        contents: The same names, and that of the hardware's file, -> sha256 of the content.
        hardware: Name of a shipped device, or a local file of the service's own, or None.
        folder: A new folder for this attempt alone; removed when it has ended.
        cache: Folder that the jobs of this tenant share, for work that can be used again.
        memory: Resident memory allowed, bytes.
        trusted: Whether the submitter may load `.pt2` archives.
        downloads: Whether specs may fetch models from a hub.
    """

    claim: Claim
    model: str
    data: str
    files: Mapping[str, Path]
    hardware: str | Path | None
    folder: Path
    cache: Path
    memory: int
    trusted: bool = False
    downloads: bool = False
    contents: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Produced:
    """A file that a job made, not yet published.

    Attributes:
        name: What clients call it, such as `allocation.json`.
        path: Where it lies.
        media_type: Such as `image/png`.
    """

    name: str
    path: Path
    media_type: str


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        produced: The files it made.
        failure: Why it failed; None: it succeeded.
        retry: Whether another attempt may do better (the machine's fault, not the job's).
    """

    produced: tuple[Produced, ...] = field(default=())
    failure: Failure | None = None
    retry: bool = False


class Run(Protocol):
    """One attempt under way."""

    def updates(self) -> list[Update]:
        """Take what it has told since the last call."""
        ...

    def ended(self) -> Ended | None:
        """Tell how it ended, or None while it runs; enforces the limits on the way."""
        ...

    def kill(self) -> None:
        """End it and everything it started, within two seconds, and remove its folder."""
        ...


class Executor(Protocol):
    """Runs attempts.

    Attributes:
        elsewhere: Whether jobs run on other machines, which fetch the files they need themselves;
            assignments then name contents without files.
    """

    elsewhere: bool

    def start(self, assignment: Assignment) -> Run:
        """Begin an attempt; returns at once."""
        ...

    def ready(self) -> str | None:
        """Say what keeps it from running jobs, or None when nothing does."""
        ...

    def close(self) -> None:
        """End everything it started."""
        ...
