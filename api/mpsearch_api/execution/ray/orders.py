"""What dispatcher, gateway and attempt say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from mpsearch.schemas.jobs import Failure
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import Program
from mpsearch_api.execution.port import Assignment, Ended

__all__ = ["Cancel", "File", "Order", "Over", "Report", "Start", "State", "Told"]


@dataclass(frozen=True)
class Order:
    """One attempt, for a node that may share no folder with the dispatcher.

    Attributes:
        assignment: As the dispatcher knows it, without local files.
        limits: What the job may use.
        program: What runs.
        blobs: URL of the blob store; credentials for it are the node's own.
        shards: Parts of the job that run at a time.
        version: Of mpsearch, where the order was made.
    """

    assignment: Assignment
    limits: Limits
    program: Program
    blobs: str
    shards: int
    version: str = field(default_factory=lambda: version("mpsearch"))


@dataclass(frozen=True)
class File:
    """A file that a job made.

    Attributes:
        media_type: Such as `image/png`.
        content: All of it.
    """

    media_type: str
    content: bytes


@dataclass(frozen=True)
class Report:
    """How an attempt ended on its node.

    Attributes:
        files: What the job made, by name.
        failure: Why it failed, or None.
        retry: Whether another attempt may do better.
        told: Updates that did not get away before.
    """

    files: Mapping[str, File] = field(default_factory=dict)
    failure: Failure | None = None
    retry: bool = False
    told: bytes = b""


@dataclass(frozen=True)
class Start:
    """To the gateway: have this attempt run."""

    key: str
    order: Order


@dataclass(frozen=True)
class Cancel:
    """To the gateway: end this attempt."""

    key: str


@dataclass(frozen=True)
class State:
    """From the gateway, about once a second: what keeps jobs from running, or None."""

    reason: str | None


@dataclass(frozen=True)
class Told:
    """From the gateway: updates of an attempt, packed by `telling.pack_update`."""

    key: str
    lines: bytes


@dataclass(frozen=True)
class Over:
    """From the gateway: an attempt has ended; its files lie in the attempt's folder."""

    key: str
    ended: Ended
