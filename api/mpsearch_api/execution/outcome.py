"""What a job's process leaves behind for the dispatcher: the files it made, or why it failed."""

from __future__ import annotations

import errno
import traceback

from pydantic import BaseModel, ConfigDict, ValidationError

from mpsearch.errors import (
    DependencyError,
    InfeasibleError,
    InputError,
    MpsearchError,
    UnsolvedError,
)
from mpsearch.schemas.jobs import Failure, FailureKind

__all__ = ["LIMIT_EXIT_CODE", "Made", "Outcome", "failure_of"]

LIMIT_EXIT_CODE = 4
"""What the command line exits with when the machine, not the input, was the reason."""

_LIMITS = {
    errno.EMFILE: "it opened more files than a job may",
    errno.ENFILE: "the machine has no file descriptors left",
    errno.EFBIG: "it wrote a larger file than a job may",
    errno.ENOSPC: "the disk is full",
    errno.EAGAIN: "it started more processes or threads than a job may",
}


class Made(BaseModel):
    """A file in the job's folder of results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    media_type: str


class Outcome(BaseModel):
    """How the job ended, as its process saw it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made: tuple[Made, ...] = ()
    failure: Failure | None = None


def failure_of(error: BaseException) -> Failure:
    """Say why a job failed.

    Args:
        error: What it raised.

    Returns:
        The failure; errors that nobody raised on purpose are `internal` and name their type.
    """
    if isinstance(error, MpsearchError):
        minimum = error.minimum if isinstance(error, InfeasibleError) else {}
        return Failure(
            kind=_kind(error), message=str(error), exit_code=error.exit_code, minimum=minimum
        )
    if isinstance(error, ValidationError):
        return Failure(kind="bad_input", message=str(error), exit_code=InputError.exit_code)
    if _is_memory(error):
        return Failure(
            kind="memory",
            message="the job ran out of memory; ask for more with execution.memory",
            exit_code=LIMIT_EXIT_CODE,
        )
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return Failure(
            kind="limit",
            message=f"the job was refused by the system: {_LIMITS[error.errno]}",
            exit_code=LIMIT_EXIT_CODE,
        )
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" in {last[0].name}" if last else ""
    return Failure(kind="internal", message=f"{type(error).__name__}{where}: {error}", exit_code=1)


def _kind(error: MpsearchError) -> FailureKind:
    kinds: tuple[tuple[type[MpsearchError], FailureKind], ...] = (
        (InfeasibleError, "infeasible"),
        (UnsolvedError, "unsolved"),
        (DependencyError, "dependency"),
        (InputError, "bad_input"),
    )
    return next((kind for family, kind in kinds if isinstance(error, family)), "internal")


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)
