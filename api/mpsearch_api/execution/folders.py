"""Folders of the dispatchers: one for each attempt, and what is left when a dispatcher dies.

```text
DATA_DIR/run/DISPATCHER/lock          held as long as the dispatcher lives
DATA_DIR/run/DISPATCHER/state.json    how it is, for whoever asks
DATA_DIR/run/DISPATCHER/JOB-ATTEMPT/  one attempt: work, temporary files, results, log
DATA_DIR/cache/TENANT/                work that later jobs of a tenant use again
```
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mpsearch.schemas.document import write_atomically

__all__ = ["DispatcherState", "RunFolder", "cache_of", "dispatchers", "prune", "sweep"]

LOCK = "lock"
STATE = "state.json"
GRACE = 60.0
"""Seconds in which a folder without a holder may still be on its way to get one."""

CACHED = {".json", ".npz"}
HUB = "hub"


@dataclass(frozen=True)
class DispatcherState:
    """How a dispatcher is.

    Attributes:
        name: Its name.
        pid: Its process id.
        time: When it said so, Unix seconds.
        executor: What keeps it from running jobs, or None.
        running: Jobs it runs.
    """

    name: str
    pid: int
    time: float
    executor: str | None
    running: int


class RunFolder:
    """A dispatcher's own folder; the kernel lets go of its lock when the dispatcher dies."""

    def __init__(self, data_dir: Path, name: str) -> None:
        """Make the folder and lock it.

        Args:
            data_dir: Of the service.
            name: Of the dispatcher; no other has it.
        """
        self.path = data_dir / "run" / name
        # It gets its name when it is locked, or another dispatcher might take it for abandoned.
        unnamed = self.path.with_name(f".{name}")
        unnamed.mkdir(parents=True, mode=0o700)
        self._lock = os.open(unnamed / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path)

    def attempt(self, job: str, attempt: int, *, new: bool) -> Path:
        """Give the folder of one attempt.

        Args:
            job: Id.
            attempt: Number of the attempt.
            new: Make it.

        Returns:
            The folder.
        """
        path = self.path / f"{job}-{attempt}"
        if new:
            path.mkdir(mode=0o700)
        return path

    def tell(self, executor: str | None, running: int) -> None:
        """Write down how the dispatcher is.

        Args:
            executor: What keeps it from running jobs, or None.
            running: Jobs it runs.
        """
        state = DispatcherState(self.path.name, os.getpid(), time.time(), executor, running)
        write_atomically(self.path / STATE, json.dumps(asdict(state)).encode())

    def close(self) -> None:
        """Remove the folder and let go of the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def dispatchers(data_dir: Path) -> list[DispatcherState]:
    """Tell how the dispatchers of this machine are that live.

    Args:
        data_dir: Of the service.

    Returns:
        What each wrote down last.
    """
    found = []
    for folder in _folders(data_dir):
        if not _abandoned(folder):
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(DispatcherState(**json.loads((folder / STATE).read_text())))
    return found


def sweep(data_dir: Path) -> list[str]:
    """Remove what dispatchers left that died, processes included.

    Args:
        data_dir: Of the service.

    Returns:
        Names of those dispatchers.
    """
    dead = [folder for folder in _folders(data_dir) if _abandoned(folder)]
    if dead:
        _kill_users(dead)
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in dead]


def cache_of(data_dir: Path, tenant: str) -> Path:
    """Give the folder of cached work of one tenant; no two tenants share one.

    Args:
        data_dir: Of the service.
        tenant: Whose; any text.

    Returns:
        The folder; its name shows nothing of the tenant's.
    """
    return data_dir / "cache" / hashlib.sha256(tenant.encode()).hexdigest()[:32]


def prune(data_dir: Path, most_bytes: int) -> int:
    """Delete cached work that was used longest ago until the rest is small enough.

    Args:
        data_dir: Of the service.
        most_bytes: How small.

    Returns:
        Bytes deleted.
    """
    found: list[tuple[float, int, Path]] = []
    for path in (data_dir / "cache").rglob("*"):
        with contextlib.suppress(OSError):
            state = path.stat()
            # A model from a hub is of use whole or not at all; its files are not ours to pick from.
            inside = path.relative_to(data_dir / "cache").parts[1:]
            if path.suffix in CACHED and inside[:1] != (HUB,):
                found.append((state.st_mtime, state.st_size, path))
    excess = sum(size for _, size, _ in found) - most_bytes
    deleted = 0
    for _, size, path in sorted(found):
        if deleted >= excess:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            deleted += size
    return deleted


def _folders(data_dir: Path) -> list[Path]:
    run = data_dir / "run"
    return sorted(path for path in run.iterdir() if path.is_dir()) if run.is_dir() else []


def _abandoned(folder: Path) -> bool:
    """Whether nobody holds the folder's lock."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        # Being made this moment, or removed, or its maker was killed between two steps.
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime > GRACE
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        young = folder.name.startswith(".") and time.time() - folder.stat().st_mtime < GRACE
        return not young
    finally:
        os.close(descriptor)


def _kill_users(folders: list[Path]) -> None:
    """Kill processes that work or keep files open in these folders.

    Where namespaces are refused, something that a job started may outlive a killed dispatcher.
    """
    inside = tuple(f"{folder.resolve()}/" for folder in folders)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            places = [(process / "cwd").readlink()]
            places += [descriptor.readlink() for descriptor in (process / "fd").iterdir()]
            if any(f"{place}/".startswith(inside) for place in places):
                os.kill(int(process.name), signal.SIGKILL)
