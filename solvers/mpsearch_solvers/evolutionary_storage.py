"""Where a study keeps its finished trials, safe against `kill -9` at any moment.

A finished trial is one record, written and synced at once. The sampler works on a copy in memory,
so a process that dies leaves no half-finished trial behind and needs no cleaning up.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpsearch_solvers.errors import MethodError

# Elsewhere Optuna's own lock file serves, and two runs of one study are not told apart.
_HAS_RECORD_LOCKS = os.name == "posix"

_REGISTRY_LOCK = threading.Lock()
_HELD: dict[str, threading.Lock] = {}


class ProcessLock:
    """An exclusive lock on a file, which the kernel releases when its process dies.

    Optuna's lock files outlive a killed process and make the next one wait half a minute. POSIX
    record locks belong to the process, so worker processes forked from it do not keep them; among
    the threads of one process an ordinary lock decides.
    """

    def __init__(self, path: str) -> None:
        """Name the lock file; it stays behind, empty."""
        self.path = path
        with _REGISTRY_LOCK:
            self._thread = _HELD.setdefault(str(Path(path).resolve()), threading.Lock())
        self._file: int | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock.

        Args:
            wait: Wait for it, or return False at once where another holds it.

        Returns:
            Whether it is held now.

        Raises:
            OSError: If the file cannot be opened or its file system knows no locks.
        """
        import fcntl

        if not self._thread.acquire(blocking=wait):
            return False
        file: int | None = None
        try:
            file = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if file is not None:
                os.close(file)
            self._thread.release()
            if not wait and isinstance(error, BlockingIOError | PermissionError):
                return False
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        assert self._file is not None
        os.close(self._file)
        self._file = None
        self._thread.release()


@contextmanager
def open_storage(storage: object, study: str) -> Iterator[Any]:
    """Open a storage for one run of one study.

    Args:
        storage: A path of a journal file, a database URL such as `sqlite:///study.db`, an Optuna
            storage, or None for memory.
        study: Name of the study; no two runs of it may write to one file at a time.

    Yields:
        The Optuna storage, or None.

    Raises:
        MethodError: If another process or thread runs this study on this file, or the folder is
            missing.
    """
    if storage is None or not isinstance(storage, str | os.PathLike):
        yield storage
        return
    text = os.fspath(storage)
    path = text.removeprefix("sqlite:///") if "://" in text else text
    if "://" in path:
        yield text
        return
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise MethodError(f"storage {text!r}: the folder {folder} does not exist; create it")
    if not _HAS_RECORD_LOCKS:
        yield text if text != path else _journal(path, None)
        return
    owner = ProcessLock(f"{path}.{re.sub(r'[^A-Za-z0-9_.-]', '_', study)}.running")
    if not owner.acquire(wait=False):
        raise MethodError(
            f"study {study!r} in {text!r} is being run by another process or thread; wait for it, "
            "or give this run its own study name"
        )
    try:
        yield text if text != path else _journal(path, ProcessLock(f"{path}.lock"))
    finally:
        owner.release()


def _journal(path: str, lock: Any) -> Any:  # noqa: ANN401 - Optuna's storage, untyped
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if lock is None:
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    lock.acquire()
    try:
        drop_torn_record(Path(path))
    finally:
        lock.release()
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))


def drop_torn_record(path: Path) -> None:
    """Cut a journal back to its last whole record.

    A machine that dies while writing leaves part of a line; the next record would be appended to
    it and both would be unreadable.

    Args:
        path: The journal; nothing happens where there is none.
    """
    if not path.exists():
        return
    with path.open("rb+") as journal:
        content = journal.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            journal.truncate(whole)
            os.fsync(journal.fileno())
