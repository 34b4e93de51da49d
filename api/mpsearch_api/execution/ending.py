"""From how a job's process ended to what is said of the job."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from pydantic import ValidationError

from mpsearch.schemas.jobs import Failure, FailureKind
from mpsearch_api.execution.child import LOG, MADE, OUTCOME
from mpsearch_api.execution.keeper import Ending
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.outcome import LIMIT_EXIT_CODE, Outcome
from mpsearch_api.execution.port import Assignment, Ended, Produced

__all__ = ["ended_of", "log_tail"]

TAIL_BYTES = 4096
LONGEST_LOG = 4 * 2**20
LONGEST_OUTCOME = 2**20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
MEDIA_TYPES = {
    "application/json",
    "application/octet-stream",
    "image/png",
    "text/csv; charset=utf-8",
    "text/html; charset=utf-8",
    "text/plain",
    "text/plain; charset=utf-8",
}


def ended_of(assignment: Assignment, limits: Limits, ending: Ending | None) -> Ended:
    """Judge how an attempt ended.

    Args:
        assignment: What was run.
        limits: Under which limits.
        ending: What its keeper said; None: the keeper died.

    Returns:
        The files made, or the failure with the end of the log.
    """
    if ending is None:
        return _failed(assignment, "worker_died", "the process that ran the job died", retry=True)
    if ending.broken is not None:
        return _failed(assignment, *_broken(ending, limits))
    outcome = _outcome(assignment.folder) if ending.status == 0 else None
    if outcome is None:
        return _crashed(assignment, ending)
    produced = [*_produced(assignment.folder, outcome), *_log(assignment.folder)]
    failure = outcome.failure
    if failure is not None:
        said = {
            "message": _unsaid(assignment, failure.message),
            "log_tail": log_tail(assignment),
        }
        failure = failure.model_copy(update=said)
        return Ended(tuple(_log(assignment.folder)), failure)
    return Ended(tuple(produced))


def log_tail(assignment: Assignment) -> str:
    """Read the end of a job's log, with the service's own paths taken out.

    Args:
        assignment: Whose.

    Returns:
        At most four kilobytes, from the beginning of a line.
    """
    path = assignment.folder / LOG
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    if size > TAIL_BYTES:
        text = text.partition("\n")[2] or text
    return _unsaid(assignment, text)


def _unsaid(assignment: Assignment, text: str) -> str:
    """Take the service's own paths out of what clients will read."""
    for name, own in _own_paths(assignment):
        text = text.replace(own, name)
    return text


def _own_paths(assignment: Assignment) -> list[tuple[str, str]]:
    named = [(f"upload:{name}", str(path)) for name, path in assignment.files.items()]
    named += [("<cache>", str(assignment.cache)), ("<job>", str(assignment.folder))]
    return sorted(named, key=lambda pair: -len(pair[1]))


def _broken(ending: Ending, limits: Limits) -> tuple[FailureKind, str]:
    if ending.broken == "memory":
        return "memory", (
            f"the job and its children used {ending.memory / 2**20:.0f} MiB of memory, more than "
            f"its limit of {limits.memory / 2**20:.0f} MiB; ask for more with execution.memory, "
            "or score on fewer samples or smaller batches"
        )
    if ending.broken == "time":
        return "time", (
            f"the job ran for {ending.seconds:.0f} s, longer than its limit of "
            f"{limits.seconds:g} s; ask for more with execution.time_limit"
        )
    if ending.broken == "processes":
        return "limit", f"the job started more than {limits.processes} processes"
    if ending.broken == "network":
        return "dependency", (
            "this job must run without network, and this machine does not let the service cut it "
            "off (unshare); .pt2 archives are not run here"
        )
    return "crashed", "the job was ended"


def _crashed(assignment: Assignment, ending: Ending) -> Ended:
    status = ending.status
    if status == -signal.SIGKILL and ending.starved:
        what = "the machine ran out of memory, and the kernel killed the job"
        return _failed(assignment, "memory", what)
    if status is None or status == -signal.SIGKILL:  # not by our keeper: by an operator
        return _failed(assignment, "worker_died", "the job's process was killed", retry=True)
    if status == -signal.SIGXCPU:
        return _failed(assignment, "limit", "the job used up its processor time")
    if status < 0:
        what = f"the job crashed: {signal.strsignal(-status)} (signal {-status})"
        return _failed(assignment, "crashed", what)
    return _failed(assignment, "crashed", f"the job ended without a result (exit code {status})")


def _failed(
    assignment: Assignment, kind: FailureKind, message: str, *, retry: bool = False
) -> Ended:
    failure = Failure(
        kind=kind, message=message, exit_code=LIMIT_EXIT_CODE, log_tail=log_tail(assignment)
    )
    return Ended(tuple(_log(assignment.folder)), failure, retry)


def _outcome(folder: Path) -> Outcome | None:
    path = folder / OUTCOME
    try:
        if path.is_symlink() or path.stat().st_size > LONGEST_OUTCOME:
            return None
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _produced(folder: Path, outcome: Outcome) -> list[Produced]:
    """List the files made; name and type end in paths and headers, so both must be plain."""
    made = folder / MADE
    return [
        Produced(file.name, made / file.name, file.media_type)
        for file in outcome.made
        if NAME.fullmatch(file.name)
        and file.media_type in MEDIA_TYPES
        and _is_own_file(made / file.name)
    ]


def _log(folder: Path) -> list[Produced]:
    """Give the log, or its end where a job wrote without measure."""
    if _is_own_file(folder / LOG):
        if (folder / LOG).stat().st_size > LONGEST_LOG:
            with (folder / LOG).open("r+b") as file:
                file.seek(-LONGEST_LOG, os.SEEK_END)
                end = file.read()
                file.seek(0)
                file.write(end)
                file.truncate()
        return [Produced(LOG, folder / LOG, "text/plain; charset=utf-8")]
    return []


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
