"""Rounds: graphs run in turn until their kernels' times have settled, kept on disk as they come.

Rounds come in sets. For every set the sessions are opened anew, which gives each set its own
memory layout and lets the runtime's profile be read; after it the times are saved, so that an
interrupted measurement goes on where it stopped, and the two halves of all rounds are compared:
when they agree, more rounds would show nothing new.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpsearch.errors import DocumentError, InputError
from mpsearch.hardware.onnx_graph import onnx_modules
from mpsearch.hardware.round_times import RoundsTaken, Seconds
from mpsearch.hardware.runtime_session import (
    ProfiledSession,
    RuntimeSession,
    reference_session,
)
from mpsearch.progress import OnProgress, Progress

__all__ = ["FEWEST", "Rounds", "outline", "rounds_file", "run_rounds"]

FEWEST = 10
"""Rounds that are run however little time there is."""


@dataclass(frozen=True)
class Rounds:
    """How long graphs are run.

    Attributes:
        rounds: The most runs of every graph.
        warm_up: Runs of a newly opened session that do not count.
        threads: Threads of a kernel.
        together: Rounds of a set.
        settled: Stop when the halves of all rounds differ by less than this share of the time.
        most_seconds: Stop after this long by the clock, with what has been measured by then.
    """

    rounds: int = 60
    warm_up: int = 2
    threads: int = 1
    together: int = 15
    settled: float = 0.05
    most_seconds: float = 150.0


def run_rounds(
    graphs: Mapping[str, bytes],
    example: NDArray[Any],
    rounds: Rounds,
    conditions: Mapping[str, str],
    *,
    keep: Path | None = None,
    resume: bool = False,
    on_progress: OnProgress,
) -> RoundsTaken:
    """Run graphs in turn, every kernel timed, until the times have settled.

    Args:
        graphs: Name -> serialized ONNX model whose node names begin with `op<number>/`.
        example: The input of every run.
        rounds: When to stop.
        conditions: What else the times depend on.
        keep: Where to keep the times after every set.
        resume: Go on with what is kept there.
        on_progress: Called after every round.

    Returns:
        All times.

    Raises:
        InputError: What is kept there is of another model or other conditions.
    """
    digest = outline(graphs, conditions, example.shape)
    taken = _kept(keep, digest) if resume and keep is not None and keep.exists() else None
    taken = taken or RoundsTaken(outline=digest, graphs=dict.fromkeys(graphs, Seconds()), pace=[])
    deadline = time.monotonic() + rounds.most_seconds
    message = f"rounds of {len(graphs)} graphs"
    while taken.rounds < rounds.rounds:
        if taken.rounds >= 2 * rounds.together and taken.unsettled < rounds.settled:
            break
        if taken.rounds >= FEWEST and time.monotonic() > deadline:
            break
        on_progress(Progress("measure", taken.rounds, rounds.rounds, message))
        taken = _another_set(graphs, example, rounds, taken, deadline, on_progress, message)
        if keep is not None:
            taken.save(keep)
    on_progress(Progress("measure", rounds.rounds, rounds.rounds, message))
    return taken


def outline(
    graphs: Mapping[str, bytes], conditions: Mapping[str, str], shape: Sequence[int]
) -> str:
    """Digest what decides how long graphs take: operations and sizes, not the values of weights.

    Args:
        graphs: Name -> serialized ONNX model.
        conditions: What else times depend on.
        shape: Shape of the input.

    Returns:
        SHA-256, hexadecimal.
    """
    onnx, _ = onnx_modules()
    digest = hashlib.sha256(repr((sorted(conditions.items()), tuple(shape))).encode())
    for name in sorted(graphs):
        graph = onnx.load_from_string(graphs[name]).graph
        nodes = [
            (
                node.op_type,
                list(node.input),
                list(node.output),
                sorted(each.SerializeToString(deterministic=True) for each in node.attribute),
            )
            for node in graph.node
        ]
        stored = sorted((t.name, t.data_type, tuple(t.dims)) for t in graph.initializer)
        digest.update(repr((name, nodes, stored)).encode())
    return digest.hexdigest()


def rounds_file(table: Path) -> Path:
    """Name the file that keeps the rounds of an unfinished measurement.

    Args:
        table: The table that it will make.

    Returns:
        A file beside it.
    """
    return table.with_name(f"{table.name}.rounds")


def _kept(file: Path, digest: str) -> RoundsTaken:
    try:
        found = RoundsTaken.load(file)
    except DocumentError as error:
        raise DocumentError(f"{error}; delete it to start anew") from error
    if found.outline != digest:
        raise InputError(
            f"{file} keeps the rounds of another model, other options or other conditions; finish "
            "that measurement, or delete the file to start anew"
        )
    return found


def _another_set(
    graphs: Mapping[str, bytes],
    example: NDArray[Any],
    rounds: Rounds,
    before: RoundsTaken,
    deadline: float,
    on_progress: OnProgress,
    message: str,
) -> RoundsTaken:
    inside = {n: ProfiledSession(p, rounds.threads, example) for n, p in graphs.items()}
    alone = {n: RuntimeSession(p, rounds.threads, example) for n, p in graphs.items()}
    reference = reference_session(rounds.threads)
    whole: dict[str, list[float]] = {name: [] for name in graphs}
    pace: list[float] = []
    wanted = rounds.warm_up + min(rounds.together, rounds.rounds - before.rounds)
    while len(pace) < wanted:
        for name in graphs:
            inside[name].run()
            whole[name].append(alone[name].run())
        pace.append(reference.run())
        done = before.rounds + max(0, len(pace) - rounds.warm_up)
        on_progress(Progress("measure", done, rounds.rounds, message))
        if done >= max(FEWEST, before.rounds + 1) and time.monotonic() > deadline:
            break
    start = rounds.warm_up
    later = {name: _seconds(inside[name].finish()[start:], whole[name][start:]) for name in graphs}
    return RoundsTaken(
        outline=before.outline,
        graphs={name: before.graphs[name].followed_by(later[name]) for name in graphs},
        pace=[*before.pace, *pace[start:]],
    )


def _seconds(runs: Sequence[Any], whole: Sequence[float]) -> Seconds:
    """Turn runs of all kernels into kernels of all runs."""
    numbers = dict.fromkeys(itertools.chain.from_iterable(run.work for run in runs))
    changed = dict.fromkeys(itertools.chain.from_iterable(run.between for run in runs))
    return Seconds(
        whole=list(whole),
        work={number: [run.work[number] for run in runs] for number in numbers},
        between={number: [run.between[number] for run in runs] for number in changed},
    )
