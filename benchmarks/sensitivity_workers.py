"""Speed-up of sharded sensitivity on two worker processes over one, and what a shard costs.

    python benchmarks/sensitivity_workers.py [--rounds 5] [--images 32] [--batch 8] [--probes 8]

torchvision's ResNet-18 with random weights at 64 x 64, one torch thread everywhere. A pool of one
process and a pool of two are started before the clock and take turns, in the same run, on the same
work; times are by the clock on the wall, since that is what more workers are for, so the machine
has to be quiet: plain forward passes in the same pools, with nothing to share, show how much two
processes can gain on it at that moment. The scores of all pools must be those of a run without
one, bit for bit. Besides, what one shard costs to describe, send and compute, from which larger
runs can be foretold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import mpsearch as mp
from mpsearch.sensitivity import shard_payload
from mpsearch.sensitivity.protocol import Estimator, Scores, ScoringTask

OPTIONS = ["w2", "w3", "w4", "w6", "w8"]


class CountingPool(ProcessPoolExecutor):
    """A pool that counts what is submitted."""

    submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a call, and count it."""
        self.submitted += 1
        return super().submit(fn, *args, **kwargs)


def started(workers: int) -> CountingPool:
    """Start a pool whose processes have everything imported."""
    pool = CountingPool(workers, multiprocessing.get_context("spawn"))
    list(pool.map(_import, range(workers)))
    pool.submitted = 0
    return pool


def _import(_: int) -> int:
    import torchvision  # noqa: F401 - a fresh process takes seconds for it

    import mpsearch.sensitivity.hessian  # noqa: F401

    time.sleep(2)  # so that every process of the pool takes one of these calls
    return os.getpid()


_MODEL: list[torch.nn.Module] = []


def _forwards(count: int) -> None:
    """Run the network so many times, in a worker."""
    if not _MODEL:
        torch.set_num_threads(1)
        _MODEL.append(network(1, 1)[0])
    inputs = torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        for _ in range(count):
            _MODEL[0](inputs)


def bound(one: Executor, two: Executor, passes: int) -> float:
    """Measure how much faster two processes are than one where nothing is shared."""
    seconds = []
    for pool in (one, two):
        list(pool.map(_forwards, [1, 1]))
        begun = time.perf_counter()
        list(pool.map(_forwards, [passes] * 2))
        seconds.append(time.perf_counter() - begun)
    return seconds[0] / seconds[1]


def timed(work: Callable[[], mp.Profile]) -> tuple[float, mp.Profile]:
    """Time one call by the clock on the wall."""
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def main() -> None:
    """Run everything that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--probes", type=int, default=8)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, data = network(chosen.images, chosen.batch)
    print(f"ResNet-18, {chosen.images} images of 64 px in batches of {chosen.batch}, {OPTIONS}")
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    mp.profile(model, data, OPTIONS, Packing())
    with started(1) as one, started(2) as two:
        for estimator, settings in (
            ("measured_kl", {}),
            ("hessian_trace", {"probes": chosen.probes}),
        ):
            compare(model, data, estimator, settings, (one, two), chosen.rounds)


def network(images: int, batch: int) -> tuple[torch.nn.Module, mp.DataSet]:
    """Make the network and its data."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    inputs, targets = torch.randn(images, 3, 64, 64), torch.randint(0, 1000, (images,))
    return model, mp.DataSet("noise", inputs, targets, batch_size=batch)


class Packing(Estimator):
    """Scores nothing; shows what is sent to a worker once, and how long it takes to pack it."""

    name = "packing"
    scores_activations = True

    def score(self, task: ScoringTask) -> Scores:
        """Pack and unpack."""
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            payload = shard_payload.packed(task)
            seconds.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        shard_payload.compute_shard(payload.content, payload.key, _nothing, None)
        print(
            f"payload {payload.size / 1e6:.1f} MB: packed and hashed in "
            f"{statistics.median(seconds):.3f} s, unpacked by a worker in "
            f"{time.perf_counter() - begun:.3f} s"
        )
        nothing = np.zeros((len(task.layers), len(task.options)))
        return Scores(nothing, nothing)


def _nothing(*_: object) -> dict[str, NDArray[np.float64]]:
    return {}


def compare(
    model: torch.nn.Module,
    data: mp.DataSet,
    estimator: str,
    settings: dict[str, Any],
    pools: tuple[CountingPool, CountingPool],
    rounds: int,
) -> None:
    """Time one estimator alone, on one worker and on two, in turns."""

    def scored(pool: Executor | None) -> mp.Profile:
        return mp.profile(model, data, OPTIONS, estimator, executor=pool, **settings)

    alone: list[float] = []
    shared: list[list[float]] = [[], []]
    bounds: list[float] = []
    for number in range(rounds + 1):
        seconds, reference = timed(lambda: scored(None))
        if number:  # the first round warms everything up
            alone.append(seconds)
        for pool, times in zip(pools, shared, strict=True):
            pool.submitted = 0
            seconds, found = timed(lambda pool=pool: scored(pool))  # type: ignore[misc]
            assert np.array_equal(found.loss, reference.loss)
            assert np.array_equal(found.stderr, reference.stderr)
            if number:
                times.append(seconds)
        if number:
            bounds.append(bound(*pools, passes=10))
    ratios = [one / two for one, two in zip(*shared, strict=True)]
    shards = pools[0].submitted
    print(
        f"{estimator} {settings or ''}: {shards} shards\n"
        f"  2 workers over 1: {statistics.median(ratios):.2f} times as fast "
        f"[{min(ratios):.2f}, {max(ratios):.2f}] (>= 1.6); "
        f"plain forward passes {statistics.median(bounds):.2f} "
        f"[{min(bounds):.2f}, {max(bounds):.2f}]\n"
        f"  seconds: {statistics.median(alone):.2f} without workers, "
        f"{statistics.median(shared[0]):.2f} with 1, {statistics.median(shared[1]):.2f} with 2; "
        f"{statistics.median(shared[0]) / shards:.3f} per shard on 1",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        kept, _ = timed(
            lambda: mp.profile(model, data, OPTIONS, estimator, cache_dir=folder, **settings)
        )
    print(f"  {kept:.2f} s with its shards kept on disk, without workers", flush=True)


if __name__ == "__main__":
    main()
