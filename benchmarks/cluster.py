"""How much faster two Ray workers score a model than one, and what a shard costs in itself.

    python benchmarks/cluster.py              # about ten minutes on two cores
    python benchmarks/cluster.py --rounds 1   # one round

Starts a cluster of one node on this machine (two processors, token authentication) and profiles a
bundled model with one torch thread in each process: by one worker at a time, by two, and without
Ray in this process, in turn, so that what else the machine does falls on all of them. The profiles
must be equal bit for bit. Then empty calls that carry the profile's payload, sent once, are timed
one after the other and all at once.

Two workers are to be at least 1.6 times as fast as one; they share the cores with this process,
which prepares the payload and adds up what comes back.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before anything reads them: the workers inherit them from the node, which is started from here.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster

from mpsearch.models.registry import as_data, as_model
from mpsearch.pipeline import profile
from mpsearch.preparing import loaded
from mpsearch.schemas import Profile
from mpsearch_api.execution.ray.raypool import RayPool

OPTIONS = ["w2a8", "w3a8", "w4a8", "w6a8", "w8a8"]
STORE = 200 * 2**20
TARGET = 1.6
EMPTY = 200


def main() -> None:
    """Start a cluster, measure, end it."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--model", default="digits-resnet")
    arguments.add_argument("--data", default="digits")
    arguments.add_argument("--samples", type=int, default=None)
    arguments.add_argument("--estimators", nargs="*", default=["measured_kl", "hessian_trace"])
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    Path("/tmp/ray").mkdir(exist_ok=True)  # ray.cluster_utils writes its address there
    with tempfile.TemporaryDirectory(prefix="mpb-", dir="/tmp") as folder:
        head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head | {"temp_dir": folder})
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            _measure(chosen)
        finally:
            ray.shutdown()
            cluster.shutdown()


def _measure(chosen: argparse.Namespace) -> None:
    named = as_model(chosen.model)
    data = as_data(chosen.data, model=named, samples=chosen.samples, seed=0)
    named, data = loaded(named, data, None)
    pools = {"1 worker": RayPool(most=1), "2 workers": RayPool(most=2)}
    print(f"{chosen.model}, {len(OPTIONS)} options, {os.cpu_count()} cores, load {os.getloadavg()}")
    for estimator in chosen.estimators:

        def score(executor: RayPool | None, estimator: str = estimator) -> Profile:
            return profile(named, data, OPTIONS, estimator, seed=0, executor=executor)

        score(pools["2 workers"])  # starts both workers and imports torch there
        ways: dict[str, Callable[[], Profile]] = {
            "here": lambda: score(None),
            "1 worker": lambda: score(pools["1 worker"]),
            "2 workers": lambda: score(pools["2 workers"]),
        }
        _report(estimator, _interleaved(ways, chosen.rounds))
    _report_empty(named.module)
    for pool in pools.values():
        pool.shutdown()


def _interleaved(ways: dict[str, Callable[[], Profile]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    first: Profile | None = None
    for turn in range(rounds):
        for way in list(ways)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            found = ways[way]()
            seconds[way].append(time.perf_counter() - began)
            first = first or found
            if not np.array_equal(found.loss, first.loss):
                raise SystemExit(f"{way}: the scores differ from those of the first run")
    return seconds


def _report(estimator: str, seconds: dict[str, list[float]]) -> None:
    for way, found in seconds.items():
        print(f"{estimator:16} {way:10} {_spread(found, 's')}")
    one, two, here = seconds["1 worker"], seconds["2 workers"], seconds["here"]
    gained = [a / b for a, b in zip(one, two, strict=True)]
    lost = [a / b for a, b in zip(one, here, strict=True)]
    verdict = "met" if statistics.median(gained) >= TARGET else "NOT met"
    print(
        f"{estimator:16} 2 workers are {_spread(gained, 'x')} as fast as 1; {TARGET} is {verdict}"
    )
    print(f"{estimator:16} 1 worker takes {_spread(lost, 'x')} the time of no Ray")


def _report_empty(module: torch.nn.Module) -> None:
    """Time calls that do nothing, with a payload as large as the model's weights."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    payload = os.urandom(size)
    pool = RayPool(most=2)
    for future in [pool.submit(len, payload) for _ in range(4)]:
        future.result()
    one_by_one = []
    for _ in range(EMPTY):
        began = time.perf_counter()
        pool.submit(len, payload).result()
        one_by_one.append(1e3 * (time.perf_counter() - began))
    began = time.perf_counter()
    for future in [pool.submit(len, payload) for _ in range(EMPTY)]:
        future.result()
    at_once = 1e3 * (time.perf_counter() - began) / EMPTY
    began = time.perf_counter()
    pool.submit(len, os.urandom(size)).result()
    new = 1e3 * (time.perf_counter() - began)
    print(
        f"empty call with a payload of {size / 1e6:.1f} MB: {_spread(one_by_one, 'ms')} one by "
        f"one, {at_once:.2f} ms each of {EMPTY} at once; {new:.1f} ms where the payload is new"
    )
    pool.shutdown()


def _spread(values: list[float], unit: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.2f} {unit} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
