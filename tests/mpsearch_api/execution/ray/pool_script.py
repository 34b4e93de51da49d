"""What a user of the library does on a cluster: `RayPool` in a process connected to it."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import jobs_for_ray
import numpy as np
import ray
import torch

import mpsearch
from mpsearch_api.execution.ray.flights import RETRIES
from mpsearch_api.execution.ray.raypool import RayPool
from mpsearch_solvers import Problem, solve
from mpsearch_solvers.evolutionary import EvolutionarySearch


def raised(future) -> str:
    try:
        future.result(120)
    except ValueError as error:
        return type(error).__name__
    return "nothing"


def evolved(executor: RayPool | None) -> list[int]:
    """Search by trials that are measured one by one, or on the cluster."""
    rng = np.random.default_rng(0)
    cost = rng.lognormal(size=(8, 3))
    limit = cost.min(axis=1).sum() + 0.4 * np.ptp(cost, axis=1).sum()
    problem = Problem.from_arrays(rng.lognormal(size=(8, 3)), {"size": cost}, {"size": limit})
    method = EvolutionarySearch(
        objective=jobs_for_ray.measured_loss, trials=40, batch=8, executor=executor
    )
    return solve(problem, method, seed=4).indices.tolist()


def ends_what_was_asked_gently(marker: Path) -> bool:
    """Close flights just after Ray began to ask their call, which does not listen, to end."""
    pool = RayPool()
    pool.submit(jobs_for_ray.stay, str(marker))
    while not (marker.exists() and marker.read_text()):
        time.sleep(0.05)
    (task,) = pool._flights._running
    ray.cancel(task, force=False)
    pool._flights.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{marker.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not Path(f"/proc/{marker.read_text()}").exists()


def main() -> None:
    address, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    pool = RayPool()
    found = {}
    found["die_once"] = pool.submit(jobs_for_ray.die_once, str(folder / "once")).result(120)
    lost = pool.submit(jobs_for_ray.die, str(folder / "deaths"))
    try:
        lost.result(240)
    except BrokenExecutor as error:
        found["lost"] = str(error)
    found["starts"] = len((folder / "deaths").read_text()) == RETRIES + 1
    found["error"] = raised(pool.submit(int, "no number"))
    content = bytes(1_000_000)
    seen = [pool.submit(jobs_for_ray.identity_of, content) for _ in range(20)]
    objects: dict[int, set[int]] = {}
    for pid, address_of, size in (each.result(120) for each in seen):
        assert size == len(content)
        objects.setdefault(pid, set()).add(address_of)
    found["one object in each worker"] = all(len(each) == 1 for each in objects.values())
    endless = pool.submit(jobs_for_ray.stay, str(folder / "endless"))
    while not (folder / "endless").exists():
        time.sleep(0.05)
    found["cancelled"] = endless.cancel()
    found["ended"] = ends_what_was_asked_gently(folder / "gently")
    args = ("digits-resnet", "digits", ["w2a8", "w8a8"], "measured_loss")
    here = mpsearch.profile(*args, seed=3)
    there = mpsearch.profile(*args, seed=3, executor=pool)
    found["equal"] = bool(np.array_equal(here.loss, there.loss))
    found["trials"] = evolved(pool) == evolved(None)
    pool.shutdown()
    found["after shutdown"] = "nothing"
    try:
        pool.submit(int, "1")
    except RuntimeError as error:
        found["after shutdown"] = str(error)
    ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
