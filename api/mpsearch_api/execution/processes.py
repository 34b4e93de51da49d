"""What the service asks of Linux: trees of processes that die together, and their memory.

`prctl(2)`, `unshare(2)` and `proc(5)` have no wrapper in Python 3.11, so they are called here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

__all__ = [
    "adopt_orphans",
    "descendants",
    "die_with_parent",
    "kill_tree",
    "mount_own_proc",
    "proportional_memory",
    "resident_memory",
    "separate_processes",
    "separate_world",
    "supported",
]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_PAGE = os.sysconf("SC_PAGE_SIZE")


def supported() -> bool:
    """Whether this system has what the local executor is built on."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that forked it dies.

    Args:
        parent: Process id of the parent, as the parent knew it before it forked; 0 from within a
            new process-id namespace.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parents die, so that none escapes."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def separate_processes() -> bool:
    """Put this process's future children into a process-id namespace, where permitted.

    All of them end with the first, whatever they do. A process that may not make one tries from a
    user namespace of its own.

    Returns:
        Whether it was permitted; nothing has changed otherwise.
    """
    if _libc().unshare(_CLONE_NEWPID) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if _libc().unshare(_CLONE_NEWPID | _CLONE_NEWUSER) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def separate_world(*, network: bool) -> bool:
    """Give this process mounts, System V memory and a host name of its own, where permitted.

    Args:
        network: Whether the network is cut off too; only a loopback that is down is left then.

    Returns:
        Whether it was permitted; nothing has changed otherwise.
    """
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS
    return bool(_libc().unshare(flags | (_CLONE_NEWNET if network else 0)) == 0)


def mount_own_proc() -> bool:
    """Show this process-id namespace its own `/proc`, so that it sees no other process.

    Returns:
        Whether it was permitted.
    """
    libc = _libc()
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    return bool(libc.mount(b"proc", b"/proc", b"proc", flags, None) == 0)


def descendants(pid: int, *, most: int | None = None, stopped: bool = False) -> list[int]:
    """List everything a process started that still runs, however deep.

    Args:
        pid: The process; not in the list.
        most: Stop after so many: a job that forks in a loop is faster than any list of it.
        stopped: Stop each process before its children are listed, so that none is missed.

    Returns:
        Process ids.
    """
    found: list[int] = []
    waiting = [pid]
    while waiting and (most is None or len(found) <= most):
        parent = waiting.pop()
        try:
            if stopped and parent != pid:
                os.kill(parent, signal.SIGSTOP)
            for task in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208 - called often
                with open(f"/proc/{parent}/task/{task}/children", "rb") as file:  # noqa: PTH123
                    children = [int(child) for child in file.read().split()]
                found += children
                waiting += children
        except FileNotFoundError:
            if parent == pid and not _lists_children():
                return _searched(pid)
        except (ProcessLookupError, PermissionError):
            continue
    return found


def _lists_children() -> bool:
    return Path("/proc/self/task", str(os.getpid()), "children").exists()


def _searched(pid: int) -> list[int]:
    """List descendants on kernels built without lists of children, from everyone's parents."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name before the parenthesis may hold anything; state and parent follow it.
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return found


def resident_memory(pids: list[int]) -> int:
    """Add up resident memory; pages that processes share count once for each.

    Args:
        pids: Process ids; those that ended meanwhile count nothing.

    Returns:
        Bytes.
    """
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123
            pages += int(file.read().split()[1])
    return pages * _PAGE


def proportional_memory(pids: list[int]) -> int:
    """Add up resident memory; each process counts its part of the pages it shares with others.

    Args:
        pids: Process ids; those that ended meanwhile count nothing.

    Returns:
        Bytes.
    """
    kibibytes = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
                for line in file:
                    if line.startswith(b"Pss:"):
                        kibibytes += int(line.split()[1])
                        break
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:  # not permitted: the larger figure errs on the safe side
            kibibytes += resident_memory([pid]) // 1024
    return kibibytes * 1024


def kill_tree(pid: int, *, patience: float = 2.0) -> bool:
    """Kill everything a process started, until nothing is left.

    The process should adopt orphans: then nothing of it can hide elsewhere. Processes are stopped
    before they are killed, so that one that forks in a loop cannot outrun this.

    Args:
        pid: The process; itself is not killed.
        patience: Seconds.

    Returns:
        Whether nothing is left.
    """
    until = time.monotonic() + patience
    while True:
        left = descendants(pid, stopped=True)
        for child in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        if pid == os.getpid():
            _reap()
        if not left:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.002)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
