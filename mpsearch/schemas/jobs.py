"""Jobs of the service, as clients send them and the service answers; no torch in here."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field, StringConstraints, model_validator

from mpsearch.schemas.document import Record

__all__ = [
    "STAGES",
    "Artifact",
    "Event",
    "Execution",
    "Failure",
    "FailureKind",
    "Job",
    "JobRequest",
    "JobStatus",
    "Page",
    "ResolveRequest",
    "SolverSettings",
    "Stage",
]

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Stage = Literal["load", "profile", "price", "solve", "verify", "report"]
# In the order they run: a budget that cannot be met is refused before anything is scored.
STAGES: tuple[Stage, ...] = ("load", "price", "profile", "solve", "verify", "report")

FailureKind = Literal[
    "bad_input",
    "infeasible",
    "unsolved",
    "memory",
    "time",
    "limit",
    "crashed",
    "worker_died",
    "dependency",
    "internal",
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Text = Annotated[str, StringConstraints(max_length=512)]
Scalar = bool | int | float | Text


class SolverSettings(Record):
    """How the allocation is solved."""

    method: Name = Field(default="auto", description="see GET /v1/solvers")
    gap: float = Field(default=1e-6, ge=0, le=1, description="relative gap to prove")
    time_limit: float | None = Field(default=None, gt=0, le=86_400, description="seconds")


class Execution(Record):
    """What a job may use of the machine; beyond it the job is ended and fails."""

    cpus: int = Field(default=1, ge=1, le=1024, description="threads")
    memory: str | int = Field(
        default="4GiB", description="resident memory of the job and all its children: 4GiB, or B"
    )
    time_limit: float = Field(
        default=3600.0, gt=0, le=30 * 86_400, description="seconds of wall time"
    )
    gpus: int = Field(default=0, ge=0, le=64)


class JobRequest(Record):
    """A search to run: model, data, options, estimator, hardware, budgets and limits."""

    model: Name = Field(description="a bundled model, the id of an uploaded one, or a spec")
    data: Name = Field(description="a bundled data set, the id of an uploaded one, or a spec")
    options: list[Name] = Field(
        default=["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"], min_length=1, max_length=64
    )
    estimator: Name = Field(default="measured_loss", description="see GET /v1/estimators")
    settings: dict[Name, Scalar] = Field(
        default_factory=dict, max_length=32, description="settings of the estimator"
    )
    loss: Name | None = None
    hardware: Name | None = Field(
        default=None, description="a shipped device, or the id of an uploaded table"
    )
    batch: int | None = Field(default=None, ge=1, le=65_536)
    context: int = Field(default=1, ge=1, le=10_000_000, description="tokens, for the kv cache")
    budget: dict[Name, Text | float] = Field(
        default_factory=dict, max_length=32, description="resource -> 0.25x, 3 MB, 50% …"
    )
    goal: Name | None = Field(default=None, description="`min:RESOURCE`, with `max_drop`")
    max_drop: float | None = Field(default=None, ge=0, lt=1)
    refine: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="how many allocations beside the predicted best to run on the calibration "
        "data, in search of a measurably better one; null: 32 for the estimator `auto`, else 0",
    )
    groups: list[Name] = Field(default_factory=list, max_length=1024, description="patterns")
    groups_for: Name | None = Field(default=None, description="target whose groups are proposed")
    fix: dict[Name, Name] = Field(
        default_factory=dict, max_length=4096, description="pattern -> option"
    )
    skip: list[Name] = Field(default_factory=list, max_length=4096, description="patterns")
    samples: int | None = Field(default=None, ge=1, description="score on so many inputs")
    memory_limit: str | int | None = Field(
        default=None,
        description="most memory to hold beside the model, its quantized weights and the data "
        "while layers are scored: 500MB, or B; batches are made as small as that needs",
    )
    monotone: Literal["keep", "clamp"] = "keep"
    verify: bool = Field(default=True, description="run the answer on the model")
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    solver: SolverSettings = SolverSettings()
    execution: Execution = Execution()
    label: Text = Field(default="", description="a name for people")

    @model_validator(mode="after")
    def _check_aim(self) -> JobRequest:
        if not self.budget and self.goal is None:
            raise ValueError("give a budget, such as {'weight_memory': '0.25x'}, or a goal")
        if (self.goal is None) != (self.max_drop is None):
            raise ValueError("goal and max_drop belong together: min:weight_memory and 0.01")
        if self.goal is not None and self.refine:
            raise ValueError("refine looks for less loss within budgets, goal for less use: one")
        if self.goal is not None and (minimised := self.goal.partition(":")[2]) in self.budget:
            raise ValueError(f"{minimised} is minimised, so it takes no budget")
        return self


class ResolveRequest(Record):
    """Another budget for the stored profile of a finished job."""

    budget: dict[Name, Text | float] = Field(min_length=1, max_length=32)
    solver: SolverSettings = SolverSettings()
    monotone: Literal["keep", "clamp"] = "keep"


class Failure(Record):
    """Why a job failed, for people and for programs."""

    kind: FailureKind
    message: str
    exit_code: int = Field(default=1, description="what the command line would exit with")
    minimum: dict[str, float] = Field(
        default_factory=dict,
        description="infeasible: least achievable use per resource, in its base unit",
    )
    log_tail: str = Field(default="", description="the last lines the job wrote")


class Artifact(Record):
    """A file that a job produced."""

    name: str
    media_type: str
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(description="of the content, in hex")


class Job(Record):
    """A job as it stands."""

    id: str
    status: JobStatus
    attempt: int = Field(ge=0, description="times it was started")
    request: JobRequest
    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    stage: Stage | None = None
    progress: float = Field(default=0.0, ge=0, le=1, description="share of the current stage")
    message: str = ""
    eta_seconds: float | None = Field(default=None, description="until the stage ends")
    cached: list[Stage] = Field(
        default_factory=list, description="stages answered from an earlier job's work"
    )
    failure: Failure | None = None
    artifacts: list[Artifact] = Field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in {"succeeded", "failed", "cancelled"}


class Event(Record):
    """Something that happened to a job; `id` counts from 1 within the job."""

    id: int = Field(ge=1)
    time: datetime
    kind: Literal["status", "progress", "partial", "message"]
    attempt: int = Field(ge=0)
    status: JobStatus | None = None
    stage: Stage | None = None
    progress: float | None = Field(default=None, ge=0, le=1)
    message: str = ""
    eta_seconds: float | None = None
    data: dict[str, Scalar | None] = Field(default_factory=dict)


Item = TypeVar("Item")


class Page(Record, Generic[Item]):
    """Part of a list, newest first; `next` asks for the part after it."""

    items: list[Item]
    next: str | None = Field(default=None, description="cursor; null on the last page")
