"""How large and how strongly coupled an allocation with interactions can be proven optimal.

Dense interactions between every pair of options of different groups, one binding budget. The peer,
in the same run, is the textbook linearisation (one product variable per pair of options, its sums
over a group equal to the partner's variable) given to HiGHS with the same time.

    python benchmarks/solvers_quadratic.py --groups 20 40 60 --time-limit 60
"""

from __future__ import annotations

import argparse
import time

import highspy
import numpy as np

from mpsearch_solvers import Interactions, Problem, solve

Arrays = tuple[np.ndarray, np.ndarray, float, np.ndarray]


def instance(kind: str, groups: int, options: int, strength: float, seed: int) -> Arrays:
    """Losses falling with bits, sizes growing with them, and interactions.

    `random`: independent normal, of `strength` times the geometric mean of the two losses: far
    from positive semidefinite. `factor`: inner products of error directions that share a part
    within a group, times `strength`: positive semidefinite at strength 1, as after CLADO's
    projection.
    """
    rng = np.random.default_rng(seed)
    bits = np.linspace(2, 8, options)
    size = rng.lognormal(size=groups)[:, None] * bits
    loss = rng.lognormal(size=(groups, 1)) * 4.0 ** (2 - bits) * rng.uniform(0.7, 1.3, (1, options))
    scale = np.sqrt(loss.ravel())
    places = groups * options
    if kind == "factor":
        directions = rng.normal(size=(groups, options, 30)) + rng.normal(size=(groups, 1, 30))
        directions /= np.linalg.norm(directions, axis=2, keepdims=True)
        flat = directions.reshape(places, 30) * np.sqrt(2.0) * scale[:, None]
        pairs = strength * flat @ flat.T
    else:
        pairs = strength * rng.normal(size=(places, places)) * np.outer(scale, scale)
    limit = size.min(axis=1).sum() + 0.4 * np.ptp(size, axis=1).sum()
    return loss, size, float(limit), pairs


def as_problem(loss: np.ndarray, size: np.ndarray, limit: float, pairs: np.ndarray) -> Problem:
    """The instance for `solve`."""
    one, two = _pairs(*loss.shape)
    width = loss.shape[1]
    interactions = Interactions(
        np.stack([one // width, two // width], axis=1),
        np.stack([one % width, two % width], axis=1),
        pairs[one, two],
    )
    return Problem.from_arrays(loss, {"size": size}, {"size": limit}, interactions=interactions)


def _pairs(groups: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.triu_indices(groups * width, 1)
    kept = one // width != two // width
    return one[kept], two[kept]


def linearised(
    loss: np.ndarray, size: np.ndarray, limit: float, pairs: np.ndarray, seconds: float
) -> tuple[float, float, float]:
    """Solve the linearisation with HiGHS; return objective, bound and seconds."""
    groups, width = loss.shape
    places = groups * width
    one, two = _pairs(groups, width)
    products = places + np.arange(one.size)
    # A row per (option, other group): the products over that group's options equal the option.
    rows = np.concatenate([one * groups + two // width, two * groups + one // width])
    columns = np.concatenate([products, products])
    heads = np.array(
        [p * groups + g for p in range(places) for g in range(groups) if g != p // width]
    )
    rows = np.concatenate([rows, heads])
    columns = np.concatenate([columns, heads // groups])
    values = np.concatenate([np.ones(2 * one.size), -np.ones(heads.size)])
    names, rows = np.unique(rows, return_inverse=True)
    shift = groups + 1
    rows = np.concatenate([np.arange(places) // width, np.full(places, groups), rows + shift])
    columns = np.concatenate([np.arange(places), np.arange(places), columns])
    values = np.concatenate([np.ones(places), size.ravel(), values])
    order = np.lexsort((columns, rows))
    program = highspy.HighsLp()
    program.num_col_ = places + one.size
    program.num_row_ = shift + names.size
    program.col_cost_ = np.concatenate([loss.ravel(), pairs[one, two]])
    program.col_lower_ = np.zeros(program.num_col_)
    program.col_upper_ = np.ones(program.num_col_)
    program.row_lower_ = np.r_[np.ones(groups), -np.inf, np.zeros(names.size)]
    program.row_upper_ = np.r_[np.ones(groups), limit, np.zeros(names.size)]
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.searchsorted(rows[order], np.arange(program.num_row_ + 1))
    program.a_matrix_.index_ = columns[order]
    program.a_matrix_.value_ = values[order]
    kinds = highspy.HighsVarType
    program.integrality_ = [kinds.kInteger] * places + [kinds.kContinuous] * one.size
    highs = highspy.Highs()
    for option, value in (
        ("output_flag", False), ("time_limit", seconds), ("mip_rel_gap", 1e-6), ("threads", 1),
    ):  # fmt: skip
        highs.setOptionValue(option, value)
    highs.passModel(program)
    began = time.perf_counter()
    highs.run()
    info = highs.getInfo()
    return info.objective_function_value, info.mip_dual_bound, time.perf_counter() - began


def main() -> None:
    """Print a line per instance, then how many were proven."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[20, 40, 60])
    parser.add_argument("--options", type=int, default=3)
    parser.add_argument("--strength", type=float, nargs="+", default=[0.02, 0.05, 0.1])
    parser.add_argument("--kind", nargs="+", default=["random", "factor"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--peer", action="store_true", help="also run HiGHS on the linearisation")
    args = parser.parse_args()
    solve(as_problem(*instance("random", 4, 3, 0.1, 0)), "quadratic")
    print(
        "kind    groups strength proven  seconds median (max)   largest gap   peer proven, seconds"
    )
    for kind in args.kind:
        for groups in args.groups:
            for strength in args.strength:
                _line(kind, groups, strength, args)


def _line(kind: str, groups: int, strength: float, args: argparse.Namespace) -> None:
    proven, seconds, gaps, peers = 0, [], [], []
    for seed in range(args.seeds):
        arrays = instance(kind, groups, args.options, strength, seed)
        found = solve(as_problem(*arrays), "quadratic", time_limit=args.time_limit)
        proven += found.status == "optimal"
        seconds.append(found.seconds)
        gaps.append(found.gap)
        if args.peer:
            value, bound, spent = linearised(*arrays, args.time_limit)
            # A contradiction between two certificates must not pass unseen.
            slack = 1e-6 * max(1.0, abs(value))
            assert bound <= found.objective + slack, "the peer's bound is above our answer"
            assert found.bound <= value + slack, "our bound is above the peer's answer"
            peers.append((value - bound <= 1e-6 * abs(value), spent))
    peer = ""
    if peers:
        closed = sum(done for done, _ in peers)
        peer = f"{closed}/{len(peers)}, {np.median([spent for _, spent in peers]):.1f}"
    print(
        f"{kind:8}{groups:6} {strength:8.2f} {proven:3}/{args.seeds} "
        f"{np.median(seconds):10.1f} ({max(seconds):.1f}) {max(gaps):16.2g}   {peer}",
        flush=True,
    )


if __name__ == "__main__":
    main()
