"""How long exact allocation takes, beside the best MIP solver that PuLP finds here.

    python benchmarks/solvers.py            # the whole table, several minutes
    python benchmarks/solvers.py --quick    # without the MIP solver and the largest problems

Random problems: 8 options, lognormal sizes and sensitivities, losses that fall about fourfold a
bit, limits at what a random mix of prices would spend. Every budget called binding must be used
to 99.9 %, or the run stops. Times are medians over seeds with their range; imports are warm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from mpsearch_solvers import Problem, Solution, frontier, solve

OPTIONS = 8
CASES = [
    # groups, budgets, gap, seconds allowed by the project's targets
    (1_000, 1, 1e-6, 0.2),
    (1_000, 3, 1e-4, 0.5),
    (1_000, 3, 1e-6, 5.0),
    (10_000, 1, 1e-6, 1.0),
    (10_000, 3, 1e-6, 4.0),
    (50_000, 1, 1e-6, 3.0),
    (50_000, 3, 1e-6, 10.0),
]


def binding_problem(groups: int, budgets: int, seed: int) -> Problem:
    """Return a random problem whose budgets all bind."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(10.0, 1.0, groups)
    bits = np.arange(OPTIONS) + 2.0
    sensitivity = rng.lognormal(0.0, 1.5, groups)[:, None]
    loss = sensitivity * 4.0**-bits * np.exp(rng.normal(0, 0.2, (groups, OPTIONS)))
    costs = [size[:, None] * bits / 8.0]
    while len(costs) < budgets:
        work = size * rng.lognormal(0.0, 0.7, groups)
        noise = np.exp(rng.normal(0, 0.1, (groups, OPTIONS)))
        costs.append(work[:, None] * bits ** rng.uniform(0.5, 1.5) * noise)
    prices = [loss.mean() / cost.mean() * rng.uniform(0.5, 2.0) for cost in costs]
    mix = (loss + sum(price * cost for price, cost in zip(prices, costs, strict=True))).argmin(1)
    places = np.arange(groups)
    # A little less than the mix spends: at its exact usage the relaxation would be integral.
    limits = [float(cost[places, mix].sum() * rng.uniform(0.99, 0.999)) for cost in costs]
    return Problem.from_arrays(
        loss,
        {f"r{k}": cost for k, cost in enumerate(costs)},
        {f"r{k}": limit for k, limit in enumerate(limits)},
    )


def check(problem: Problem, found: Solution, gap: float) -> None:
    """Stop the run unless an answer is proven and its budgets bind."""
    if found.gap is None or found.gap > gap:
        raise SystemExit(f"not proven: {found.status}, gap {found.gap}")
    for name, limit in problem.limits.items():
        assert limit.max is not None
        if found.usage[name] < 0.999 * limit.max:
            raise SystemExit(f"{name} does not bind: {found.usage[name] / limit.max:.4%} used")


def measure(groups: int, budgets: int, gap: float, seeds: int) -> tuple[list[float], list[float]]:
    """Return seconds and gaps of the default method, one per seed."""
    seconds, gaps = [], []
    for seed in range(seeds):
        problem = binding_problem(groups, budgets, seed)
        start = time.perf_counter()
        found = solve(problem, gap=gap)
        seconds.append(time.perf_counter() - start)
        check(problem, found, gap)
        gaps.append(float(found.gap or 0.0))
    return seconds, gaps


def measure_ilp(groups: int, budgets: int, gap: float, limit: float) -> tuple[float, Solution]:
    """Return seconds and answer of the MIP solver on seed 0."""
    start = time.perf_counter()
    found = solve(binding_problem(groups, budgets, 0), "ilp", gap=gap, time_limit=limit)
    return time.perf_counter() - start, found


def peak_memory(groups: int, budgets: int) -> float:
    """Return the peak memory in MB of a fresh process that builds and solves one problem."""
    command = [sys.executable, __file__, "--child", str(groups), str(budgets)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(answer.stdout)["peak_mb"])


def report_solves(seeds: int, quick: bool, ilp_limit: float) -> None:
    """Print one line per case."""
    print(
        f"{'groups':>7} {'budgets':>7} {'gap asked':>9} {'worst gap':>9} {'seconds':>22} "
        f"{'target':>7} {'PuLP':>18} {'ratio':>7}"
    )
    for groups, budgets, gap, target in CASES:
        if quick and groups > 10_000:
            continue
        seconds, gaps = measure(groups, budgets, gap, seeds)
        median = statistics.median(seconds)
        spread = f"{median:.3f} ({min(seconds):.3f}-{max(seconds):.3f})"
        peer, ratio = "", ""
        if not quick and groups <= 10_000:
            taken, found = measure_ilp(groups, budgets, gap, ilp_limit)
            is_done = found.gap is not None and found.gap <= gap
            peer = f"{taken:.1f} s" if is_done else f">{ilp_limit:.0f} s, gap {found.gap or 1:.0e}"
            ratio = f"{'' if is_done else '>'}{taken / seconds[0]:.0f}x"
        print(
            f"{groups:>7} {budgets:>7} {gap:>9.0e} {max(gaps):>9.1e} {spread:>22} "
            f"{target:>6.1f}s {peer:>18} {ratio:>7}",
            flush=True,
        )


def report_frontier(seeds: int) -> None:
    """Print the time of a whole supported frontier and of a neighbour budget."""
    seconds, counts = [], []
    for seed in range(seeds):
        problem = binding_problem(200, 1, seed)
        start = time.perf_counter()
        counts.append(len(list(frontier(problem, "r0"))))
        seconds.append(time.perf_counter() - start)
    print(
        f"frontier of 200 groups, all {max(counts)} supported points with certificates: "
        f"{statistics.median(seconds):.3f} s (max {max(seconds):.3f}), target 0.5 s"
    )
    problem = binding_problem(1_000, 1, 0)
    first = solve(problem)
    limit = problem.limits["r0"].max
    assert limit is not None
    start = time.perf_counter()
    solve(problem.with_limits(r0=1.01 * limit), start=first)
    print(f"a neighbour budget of 1,000 groups, warm: {time.perf_counter() - start:.3f} s")


def report_loading() -> None:
    """Print how long 50,000 x 8 takes from JSON text to a checked problem."""
    text = json.dumps(binding_problem(50_000, 3, 0).to_dict())
    start = time.perf_counter()
    document = json.loads(text)
    parsed = time.perf_counter()
    Problem.from_dict(document)
    print(
        f"loading 50,000 x 8 with 3 resources ({len(text) / 1e6:.0f} MB of JSON): "
        f"{parsed - start:.2f} s json, {time.perf_counter() - parsed:.2f} s checking"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ilp-limit", type=float, default=120.0)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        solve(binding_problem(*arguments.child, 0))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
        print(json.dumps({"peak_mb": peak}))
        return
    solve(binding_problem(20, 2, 0), "ilp")  # warms the imports
    solve(binding_problem(20, 2, 0))
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load average {load:.1f} at the start")
    report_solves(arguments.seeds, arguments.quick, arguments.ilp_limit)
    report_frontier(arguments.seeds)
    report_loading()
    if not arguments.quick:
        print(f"peak memory at 50,000 groups, 3 budgets: {peak_memory(50_000, 3):.0f} MB")


if __name__ == "__main__":
    main()
