"""What test executors run instead of searches; `request.label` names the behaviour."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from mpsearch.errors import InfeasibleError, InputError
from mpsearch_api.execution.child import MADE
from mpsearch_api.execution.outcome import Made
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.telling import Tell
from mpsearch_api.store.port import Update


def run(assignment: Assignment, tell: Tell, executor: Executor | None) -> Sequence[Made]:
    """Behave as the label says: `NAME` or `NAME ARGUMENT`."""
    name, _, argument = assignment.claim.request.label.partition(" ")
    return globals()[f"job_{name}"](assignment, tell, argument)


def _made(assignment: Assignment, name: str, content: str) -> list[Made]:
    (assignment.folder / MADE / name).write_text(content)
    return [Made(name=name, media_type="text/plain")]


def job_quick(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    tell(Update("progress", "profile", 0.5, "half"))
    time.sleep(float(argument or 0))
    tell(Update("partial", "profile", data={"float_loss": 0.5}))
    return _made(assignment, "answer.txt", f"{assignment.claim.job} {assignment.claim.attempt}")


def job_search(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    from mpsearch_api.execution.runner import run_job

    return run_job(assignment, tell)


def job_sleep(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    tell(Update("progress", "profile", 0.5, "asleep"))
    time.sleep(1e6)
    return []


def job_look(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    """Write down everything of its surroundings that a job can see."""
    lines = [f"{name}={value}" for name, value in sorted(os.environ.items())]
    lines.append(f"cwd={Path.cwd()}")
    lines.append(f"pids={sorted(int(p.name) for p in Path('/proc').iterdir() if p.name.isdigit())}")
    lines.append(f"descriptors={sorted(int(d.name) for d in Path('/proc/self/fd').iterdir())}")
    lines.append(f"niceness={os.nice(0)}")
    return _made(assignment, "seen.txt", "\n".join(lines))


def job_allocate(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    held = []
    while True:
        held.append(bytearray(os.urandom(1024)) * (16 * 1024))


def job_allocate_in_child(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            job_allocate(assignment, tell, argument)
        os._exit(0)
    time.sleep(1e6)
    return []


def job_fork(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    """Start processes that start processes, 300 in all: as a fork bomb begins."""
    for _ in range(3):
        if os.fork() == 0:
            for _ in range(99):
                if os.fork() == 0:
                    time.sleep(1e6)
            time.sleep(1e6)
    time.sleep(1e6)
    return []


def job_escape(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    """Leave a process behind in a session of its own, whose parent is gone."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            ctypes.CDLL(None).prctl(15, argument.encode(), 0, 0, 0)
            os.write(writing, b"x")
            os.closerange(0, 1024)
            time.sleep(1e6)
        os._exit(0)
    os.read(reading, 1)
    return _made(assignment, "answer.txt", "left one behind")


def job_open(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(10_000)]
    return _made(assignment, "answer.txt", str(len(held)))


def job_fill(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    with Path("big").open("wb") as file:
        file.writelines(bytes(2**20) for _ in range(1024))
    return _made(assignment, "answer.txt", "filled")


def job_segfault(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    print("about to crash", flush=True)
    ctypes.string_at(0)
    return []


def job_abort(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    os.abort()


def job_kill(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def job_exit(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    os._exit(int(argument))


def job_spin(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    while True:
        pass


def job_raise(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    print(f"the cache is at {assignment.cache}", file=sys.stderr)
    raise {
        "input": InputError("bad model"),
        "infeasible": InfeasibleError("too small", {"weight_memory": 10.0}),
        "memory": MemoryError(),
        "torch": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1"),
        "type": TypeError("a fault of ours"),
    }[argument]


def job_call(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    host, port = argument.split(":")
    with socket.create_connection((host, int(port)), timeout=2) as line:
        line.sendall(b"hello")
    return _made(assignment, "answer.txt", "called")


def job_chatter(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    for step in range(5_000):
        tell(Update("progress", "profile", step / 5_000, "x" * 100))
    os.write(3, b"no update at all\n" + b"y" * 200_000 + b"\n")
    tell(Update("message", "profile", message="done"))
    return _made(assignment, "answer.txt", "told")


def job_babble(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    for number in range(60):
        print(f"{number}: " + "x" * 100_000)
    print("the last word")
    return []


def job_nonsense(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    """Tell what no event can tell, and name files as no header can."""
    tell(Update("progress", "profile", 2.0))
    tell(Update("progress", "profile", float("nan")))
    tell(Update("partial", "profile", data={"loss": float("inf"), "words": "x" * 5000}))
    made = _made(assignment, "answer.txt", "here")
    for name in ('a".txt', "a\r\nset-cookie: b", "schön.txt"):
        made += _made(assignment, name, "never published")
    (assignment.folder / MADE / "typed.txt").write_text("never published")
    return [*made, Made(name="typed.txt", media_type="text/html\r\nset-cookie: b")]


def job_link(assignment: Assignment, tell: Tell, argument: str) -> Sequence[Made]:
    (assignment.folder / MADE / "answer.txt").symlink_to("/etc/passwd")
    return [
        Made(name="answer.txt", media_type="text/plain"),
        Made(name="../outcome.json", media_type="text/plain"),
    ]


def refuse_namespaces() -> None:
    """Prepare a nursery as on a machine where `unshare` is not permitted."""
    from mpsearch_api.execution import keeper

    keeper.separate_processes = lambda: False
    keeper.separate_world = lambda *, network: False
