from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from mpsearch_solvers import Interactions, MethodError, PeakRows, Problem, solve
from mpsearch_solvers.evaluation import is_within_limits
from mpsearch_solvers.evolutionary import EvolutionarySearch, evolve
from mpsearch_solvers.evolutionary_storage import ProcessLock
from mpsearch_solvers.evolutionary_study import AllocationStudy
from mpsearch_solvers.method import Run
from mpsearch_solvers.model import compile_problem

optuna = pytest.importorskip("optuna", reason="the extra `evolve` is not installed")


def knapsack(groups: int = 8, options: int = 3, seed: int = 0, **names) -> Problem:
    rng = np.random.default_rng(seed)
    cost = rng.lognormal(size=(groups, options))
    limit = cost.min(axis=1).sum() + 0.4 * np.ptp(cost, axis=1).sum()
    loss = rng.lognormal(size=(groups, options))
    return Problem.from_arrays(loss, {"size": cost}, {"size": float(limit)}, **names)


def measured_loss(indices: np.ndarray) -> float:
    """Something the problem's own losses say nothing about; importable by worker processes."""
    target = np.arange(len(indices)) % 3
    return float(((indices - target) ** 2).sum()) + 0.25


def two_losses(indices: np.ndarray) -> tuple[float, float]:
    return float((indices == 0).sum()), float((indices == 2).sum())


def least_measured(problem: Problem) -> float:
    """Enumerate every feasible allocation."""
    groups, options = problem.loss.shape
    grids = np.indices((options,) * groups).reshape(groups, -1).T
    within = problem.costs["size"][np.arange(groups), grids].sum(axis=1)
    return min(
        measured_loss(grids[k]) for k in np.flatnonzero(within <= problem.limits["size"].max)
    )


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_finds_the_least_measured_loss_of_a_small_problem(sampler):
    problem = knapsack(6)
    method = EvolutionarySearch(objective=measured_loss, trials=120, sampler=sampler)
    found = solve(problem, method)
    assert measured_loss(found.indices) == least_measured(problem)
    assert found.status == "feasible"
    assert found.bound is None
    assert found.gap is None
    assert found.solver.startswith("Optuna 5")


def test_tpe_stays_within_the_budget_and_beats_the_exact_start_on_the_measured_loss():
    problem = knapsack(6)
    found = solve(problem, EvolutionarySearch(objective=measured_loss, trials=60, sampler="tpe"))
    start = solve(problem, "ilp")
    assert is_within_limits(problem, found.indices)
    assert measured_loss(found.indices) < measured_loss(start.indices)


def test_numbers_alone_start_from_the_exact_answer_and_cannot_end_worse():
    problem = knapsack(10)
    exact = solve(problem, "ilp", gap=0)
    found = solve(problem, EvolutionarySearch(trials=30))
    assert found.objective == pytest.approx(exact.objective, rel=1e-4)
    assert found.status == "feasible"


def test_interactions_count_in_the_predicted_objective():
    pairs = Interactions(
        np.array([[g, g + 1] for g in range(5)]), np.zeros((5, 2), dtype=np.intp), np.full(5, 9.0)
    )
    problem = knapsack(6, interactions=pairs)
    best = solve(problem, "brute_force")
    found = solve(problem, EvolutionarySearch(trials=100))
    assert found.objective >= best.objective - 1e-12
    assert found.objective <= best.objective * 1.2


def test_only_feasible_allocations_are_measured_and_none_twice():
    problem = knapsack(7)
    seen = []

    def measure(indices):
        assert indices.shape == (7,)
        assert indices.dtype == np.intp
        seen.append(tuple(indices.tolist()))
        return measured_loss(indices)

    solve(problem, EvolutionarySearch(objective=measure, trials=80))
    assert len(seen) == len(set(seen)) == 80
    assert all(is_within_limits(problem, np.array(one)) for one in seen)


def test_tied_groups_are_measured_in_the_problems_own_columns():
    problem = knapsack(6, ties=[("1", "4")])
    seen = []

    def measure(indices):
        seen.append(indices.copy())
        return measured_loss(indices)

    solve(problem, EvolutionarySearch(objective=measure, trials=20))
    assert all(one[1] == one[4] for one in seen)


def test_the_executor_changes_nothing_but_the_time():
    problem = knapsack(8)
    alone = solve(problem, EvolutionarySearch(objective=measured_loss, trials=40), seed=4)
    again = solve(problem, EvolutionarySearch(objective=measured_loss, trials=40), seed=4)
    assert alone.choice == again.choice
    spawn = get_context("spawn")
    with (
        ThreadPoolExecutor(3) as threads,
        ProcessPoolExecutor(2, mp_context=spawn) as processes,
    ):
        # A test module is no importable name in a fresh process; the standard library's are.
        for executor, objective in ((threads, measured_loss), (processes, _Importable())):
            found = solve(
                problem,
                EvolutionarySearch(objective=objective, trials=40, executor=executor),
                seed=4,
            )
            assert found.indices is not None
            if objective is measured_loss:
                assert found.choice == alone.choice


class _Importable:
    """Pickles to a call that any process can make: the sum of the columns."""

    def __reduce__(self):
        import operator

        return operator.methodcaller, ("sum",)


def test_several_objectives_give_a_front_that_nothing_measured_beats():
    model = compile_problem(knapsack(6))
    search = EvolutionarySearch(objective=two_losses, objectives=2, trials=80)
    found = evolve(model, search)
    assert len(found.front) >= 2
    values = np.array([one.values for one in found.measured])
    for one in found.front:
        mine = np.array(one.values)
        beaten = (values <= mine).all(axis=1) & (values < mine).any(axis=1)
        assert not beaten.any()
    assert found.best.values[0] == values[:, 0].min()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_second_run_continues_where_the_first_ended(tmp_path, kind):
    problem = knapsack(8)
    storage = tmp_path / "study.log" if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    calls = []

    def measure(indices):
        calls.append(tuple(indices.tolist()))
        return measured_loss(indices)

    def method(trials):
        return EvolutionarySearch(objective=measure, trials=trials, storage=storage, batch=4)

    solve(problem, method(20))
    assert len(calls) == 20
    found = solve(problem, method(30))
    assert len(calls) == len(set(calls)) == 30
    assert "20 of them by earlier runs" in found.note
    assert measured_loss(found.indices) == min(measured_loss(np.array(one)) for one in calls)


def test_a_study_of_another_problem_is_refused(tmp_path):
    storage = tmp_path / "study.log"
    solve(knapsack(6), EvolutionarySearch(objective=measured_loss, trials=5, storage=storage))
    with pytest.raises(MethodError, match="another problem"):
        solve(knapsack(7), EvolutionarySearch(objective=measured_loss, trials=9, storage=storage))
    other = EvolutionarySearch(objective=measured_loss, trials=5, storage=storage, study="other")
    assert solve(knapsack(7), other).indices is not None


def test_one_study_is_run_by_one_process_or_thread_at_a_time(tmp_path):
    storage = tmp_path / "study.log"
    problem = knapsack(6)

    def measure(indices):
        with pytest.raises(MethodError, match="being run"):
            solve(problem, EvolutionarySearch(trials=3, storage=storage))
        return measured_loss(indices)

    solve(problem, EvolutionarySearch(objective=measure, trials=3, storage=storage))


_VICTIM = """
import sys, time
import numpy as np
from mpsearch_solvers import Problem, solve
from mpsearch_solvers.evolutionary import EvolutionarySearch

storage, log, trials, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
rng = np.random.default_rng(0)
cost = rng.lognormal(size=(10, 3))
problem = Problem.from_arrays(rng.lognormal(size=(10, 3)), {"size": cost},
                              {"size": float(cost.min(axis=1).sum() + 5)})

def measure(indices):
    time.sleep(pause)
    value = float(((indices - 1) ** 2).sum())
    with open(log, "a") as file:
        file.write("".join(map(str, indices.tolist())) + "\\n")
    return value

found = solve(problem, EvolutionarySearch(objective=measure, trials=trials, storage=storage))
print(found.note)
"""


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_kill_minus_nine_loses_no_finished_trial_and_the_study_goes_on(tmp_path, kind):
    storage = str(tmp_path / "study.log") if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    log = tmp_path / "measured"
    log.touch()
    script = tmp_path / "victim.py"
    script.write_text(_VICTIM)
    command = [sys.executable, str(script), storage, str(log), "25"]
    for killed_after in (6, 14):
        process = subprocess.Popen([*command, "0.02"], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(log.read_text().split()) < killed_after:
            assert process.poll() is None, "the study ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        with pytest.raises(MethodError, match="being run by another process"):
            solve(knapsack(3), EvolutionarySearch(trials=3, storage=storage))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        measured = log.read_text().split()
        assert len(set(measured)) == len(measured)
        # The one that was in the air when the process died may be missing from the record: it
        # had not been handed back yet. It counts as never finished.
        recorded = _recorded(storage)
        assert len(measured) - 1 <= len(recorded) <= len(measured)
        kept = [one for one in measured if one in recorded]
        log.write_text("".join(f"{one}\n" for one in kept))
    last = subprocess.run([*command, "0"], capture_output=True, text=True, check=True)
    measured = log.read_text().split()
    assert len(measured) == len(set(measured)) == 25
    assert set(measured) == _recorded(storage)
    assert f"25 allocations tried, {len(kept)} of them by earlier runs" in last.stdout


def _recorded(storage: str) -> set[str]:
    """Read the study with Optuna alone."""
    if storage.startswith("sqlite"):
        place = storage
    else:
        journal = optuna.storages.journal
        place = journal.JournalStorage(journal.JournalFileBackend(storage))
    study = optuna.load_study(study_name="mpsearch", storage=place)
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return {"".join(str(trial.params[str(g)]) for g in range(10)) for trial in trials}


def test_a_record_torn_by_a_dying_machine_is_dropped_and_the_rest_kept(tmp_path):
    storage = tmp_path / "study.log"
    problem = knapsack(6)
    solve(problem, EvolutionarySearch(objective=measured_loss, trials=6, storage=storage))
    with storage.open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    found = solve(problem, EvolutionarySearch(objective=measured_loss, trials=9, storage=storage))
    assert "9 allocations tried, 6 of them by earlier runs" in found.note


def test_a_failing_measurement_ends_the_run_unless_it_is_caught(tmp_path):
    problem = knapsack(6)
    storage = tmp_path / "study.log"
    calls = []

    def measure(indices):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return measured_loss(indices)

    settings = {"objective": measure, "trials": 10, "storage": storage}
    with pytest.raises(RuntimeError, match="out of memory"):
        solve(problem, EvolutionarySearch(**settings))
    calls.clear()
    found = solve(problem, EvolutionarySearch(**settings, catch=(RuntimeError,)))
    assert "10 allocations tried, 3 of them by earlier runs" in found.note
    assert "1 failed, the last with RuntimeError: out of memory" in found.note


def test_what_finished_beside_a_failing_measurement_is_kept(tmp_path):
    problem = knapsack(6)
    storage = tmp_path / "study.log"
    calls = []

    def measure(indices):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("boom")
        return measured_loss(indices)

    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="boom"):
        solve(
            problem,
            EvolutionarySearch(objective=measure, trials=8, storage=storage, executor=executor),
        )
    found = solve(problem, EvolutionarySearch(objective=measured_loss, trials=8, storage=storage))
    kept = int(re.search(r"(\d+) of them by earlier runs", found.note).group(1))
    assert 2 <= kept <= 7


def test_an_allocation_that_measures_nan_fails_and_is_never_chosen():
    problem = knapsack(6)
    start = solve(problem, "ilp").indices

    def measure(indices):
        return float("nan") if (indices == start).all() else measured_loss(indices)

    found = solve(problem, EvolutionarySearch(objective=measure, trials=20))
    assert (found.indices != start).any()
    assert "1 failed" in found.note


def test_nothing_but_failures_is_no_answer():
    found = solve(knapsack(4), EvolutionarySearch(objective=lambda _: float("inf"), trials=5))
    assert found.status == "unknown"
    assert found.objective is None


@pytest.mark.parametrize("threads", [0, 2])
def test_a_time_limit_ends_a_run_with_the_best_so_far(threads):
    problem = knapsack(8)

    def measure(indices):
        time.sleep(0.05)
        return measured_loss(indices)

    executor = ThreadPoolExecutor(threads) if threads else None
    method = EvolutionarySearch(objective=measure, trials=10_000, executor=executor, seeds=1)
    found = solve(problem, method, time_limit=1.5)
    assert found.status == "feasible"
    assert "the time limit" in found.note
    if executor is not None:
        executor.shutdown()


def test_with_no_time_to_measure_the_exact_start_is_the_answer():
    problem = knapsack(8)
    found = solve(problem, EvolutionarySearch(objective=measured_loss), time_limit=1e-9)
    assert is_within_limits(problem, found.indices)
    assert found.status == "feasible"


def test_an_exhausted_space_ends_the_run():
    problem = Problem.from_arrays(np.ones((2, 2)), {"s": np.ones((2, 2))}, {"s": 2.0})
    found = solve(problem, EvolutionarySearch(trials=50))
    assert "4 allocations tried" in found.note
    assert "nothing new" in found.note


def test_an_infeasible_problem_is_diagnosed_like_any_other():
    problem = knapsack(6).with_limits(size=1e-3)
    found = solve(problem, EvolutionarySearch(objective=measured_loss))
    assert found.status == "infeasible"
    assert found.conflict == ("size",)
    assert found.minimum["size"] == solve(problem, "ilp").minimum["size"]


def test_progress_tells_trials_and_the_best_measured():
    seen = []
    method = EvolutionarySearch(objective=measured_loss, trials=16)
    solve(knapsack(6), method, progress=seen.append)
    assert seen[-1].stage.startswith("16 of 16 trials, best ")
    assert seen[-1].bound is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "trials is 0"),
        ({"population": 1}, "population is 1"),
        ({"objectives": 2}, "need a callable"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(MethodError, match=message):
        EvolutionarySearch(**settings)


def test_an_unknown_sampler_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(MethodError, match="nsga2, nsga3, tpe"):
        solve(knapsack(3), EvolutionarySearch(sampler="cma", trials=3))
    with pytest.raises(MethodError, match="does not exist"):
        solve(knapsack(3), EvolutionarySearch(storage=tmp_path / "no" / "study", trials=3))


def test_an_objective_of_the_wrong_shape_is_named():
    with pytest.raises(MethodError, match="returned 2 values"):
        solve(knapsack(3), EvolutionarySearch(objective=two_losses, trials=3))
    with pytest.raises(MethodError, match="return a float"):
        solve(knapsack(3), EvolutionarySearch(objective=lambda _: "low", trials=3))


def test_without_optuna_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MethodError, match=r"pip install 'mpsearch\[evolve\]'"):
        solve(knapsack(3), "evolutionary")


def test_the_sampler_is_told_which_allocations_break_a_limit_and_by_how_much():
    problem = knapsack(6)
    model = compile_problem(problem)
    study = AllocationStudy(model, Run(), None, "s", "nsga2", 10, 1, "")
    seen = []
    for _ in range(60):
        trial, indices = study.ask()
        study.tell_over_budget(trial, [0.0])
        (violation,) = study.study.trials[-1].constraints.values()
        assert (violation <= 0.0) == is_within_limits(problem, indices)
        spent = problem.costs["size"][np.arange(6), indices].sum()
        seen.append((spent, violation))
    order = [violation for _, violation in sorted(seen)]
    assert order == sorted(order)
    assert order[0] <= 0.0 < order[-1]


def test_an_optuna_sampler_may_be_given():
    sampler = optuna.samplers.RandomSampler(seed=1)
    found = solve(knapsack(5), EvolutionarySearch(sampler=sampler, trials=12))
    assert found.indices is not None


def test_optunas_verbosity_is_left_as_it_was():
    before = optuna.logging.get_verbosity()
    solve(knapsack(3), EvolutionarySearch(trials=3))
    assert optuna.logging.get_verbosity() == before


def test_the_worst_loss_is_left_to_exact_methods():
    problem = knapsack(4, goal={"minimize": "worst_loss"})
    with pytest.raises(MethodError, match="worst loss"):
        solve(problem, "evolutionary")


def test_the_file_of_the_lock_stays_and_is_free_again(tmp_path):
    path = str(Path(tmp_path) / "lock")
    first, second = ProcessLock(path), ProcessLock(path)
    assert first.acquire()
    assert not second.acquire(wait=False)
    first.release()
    assert second.acquire(wait=False)
    second.release()


_FORKING = """
import os, signal, sys, time
from mpsearch_solvers.evolutionary_storage import ProcessLock

assert ProcessLock(sys.argv[1]).acquire()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_study_locked(tmp_path):
    path = str(tmp_path / "lock")
    script = tmp_path / "forking.py"
    script.write_text(_FORKING)
    with subprocess.Popen([sys.executable, str(script), path], stdout=subprocess.PIPE) as parent:
        orphan = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        try:
            lock = ProcessLock(path)
            assert lock.acquire(wait=False)
            lock.release()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_a_peak_can_be_minimised_and_a_loss_limit_kept():
    rng = np.random.default_rng(3)
    rows = {"memory": PeakRows(("a", "b"), rng.uniform(1, 9, size=(2, 5, 3)), np.zeros(2))}
    loss = rng.lognormal(size=(5, 3))
    goal = {"minimize": "memory", "max_loss": float(loss.min(axis=1).sum() * 1.5)}
    problem = Problem.from_arrays(loss, rows=rows, goal=goal)
    found = solve(problem, EvolutionarySearch(trials=40))
    best = solve(problem, "brute_force")
    assert best.objective <= found.objective <= best.objective * 1.001
    assert found.loss <= goal["max_loss"]
