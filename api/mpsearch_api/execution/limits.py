"""What one job may use, and putting it into force in the job's own process."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limits", "confine", "scrubbed"]

_KEPT = ("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Limits:
    """What one job may use; every limit holds for the superuser too.

    Attributes:
        memory: Resident memory of the job and everything it starts, bytes.
        seconds: Wall time.
        cpus: Threads.
        processes: Processes at once.
        open_files: Descriptors of each process.
        file_bytes: Largest file written, bytes.
        niceness: Added to the job's priority, so that the service answers first.
        network: Whether the job may use it.
        isolated: Whether the job must not run where namespaces are refused.
        gpus: Devices it may see.
        devices: Which ones those are, as `CUDA_VISIBLE_DEVICES` says it; None: the first ones.
    """

    memory: int
    seconds: float
    cpus: int = 1
    processes: int = 256
    open_files: int = 1024
    file_bytes: int = 16 * 2**30
    niceness: int = 10
    network: bool = False
    isolated: bool = False
    gpus: int = 0
    devices: str | None = None

    @property
    def cpu_seconds(self) -> int:
        """Processor time of each process: what so many threads can use in the wall time."""
        return int(self.seconds * self.cpus) + 5


def confine(limits: Limits) -> None:
    """Put the limits that a process carries itself into force, for it and what it starts.

    Memory, wall time and the number of processes are watched from outside (see `keeper`):
    `RLIMIT_AS` counts address space, of which torch reserves gigabytes, and `RLIMIT_NPROC` does
    not bind the superuser.

    Args:
        limits: The limits.
    """
    for kind, value in (
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))
    os.nice(limits.niceness)
    # When the machine runs out of memory, the job goes first, not the service.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def scrubbed(environment: Mapping[str, str], *, downloads: bool = False) -> dict[str, str]:
    """Give what jobs may see of the service's environment: no settings, no keys, no passwords.

    Args:
        environment: The service's.
        downloads: Whether jobs may fetch models from a hub.

    Returns:
        Variables for jobs.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or name.startswith("LC_")
    }
    kept.setdefault("PATH", os.defpath)
    # Threads started at import would not survive the fork; each job sets its own number.
    kept |= {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    kept |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    if not downloads:
        kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return kept
