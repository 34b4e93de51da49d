"""What every crafted file must run into: a clear refusal that costs little and leaves no trace."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpsearch.errors import InputError

MUTATIONS = int(os.environ.get("MPSEARCH_MUTATIONS", "200"))
"""Mutated files of each format that a test makes; set it to 2,000 and more to look for holes."""
MUTATION_SECONDS = 5.0
SECONDS = 2.0
MEBIBYTES = 200.0


@dataclass(frozen=True)
class Refusal:
    """How an action was refused.

    Attributes:
        words: The message.
        seconds: CPU time of this process.
        mebibytes: Peak memory above what was used before; nan where the system cannot tell.
    """

    words: str
    seconds: float
    mebibytes: float


def refusal_of(action: Callable[[Path], object], path: Path) -> Refusal:
    """Run an action on a crafted file, which must refuse it and leave its folder as it was."""
    before = sorted(path.parent.rglob("*"))
    gc.collect()
    start_memory = _reset_peak()
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        action(path)
    seconds = time.process_time() - started
    memory = _status("VmHWM") - start_memory
    assert sorted(path.parent.rglob("*")) == before, "the refusal left files behind"
    return Refusal(str(caught.value), seconds, memory)


def check_cheap(refusal: Refusal) -> None:
    """Hold a refusal to what the documentation promises."""
    assert refusal.seconds < SECONDS
    assert not refusal.mebibytes >= MEBIBYTES
    assert len(refusal.words) < 2000


@contextmanager
def never_hangs() -> Iterator[None]:
    """Hold a mutated file to five seconds of this process, however busy the machine is."""
    started = time.process_time()
    try:
        yield
    finally:
        assert time.process_time() - started < MUTATION_SECONDS


def _reset_peak() -> float:
    """Forget the peak memory so far; Linux alone can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _status("VmRSS")


def _status(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024
