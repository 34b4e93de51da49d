"""The same bits from every estimator, whoever computes its shards and in whatever order."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity import shard_plan
from mpsearch.sensitivity.sharding import Work, run_shards

SHARDED = [
    ("hessian_trace", {"probes": 9}),
    ("hessian_trace", {"probes": "auto", "settled": 0.01, "most_probes": 24}),
    ("hessian_top_eigenvalue", {"iterations": 5}),
    ("ggn_trace", {"draws": 9}),
    ("ggn_trace", {"draws": "exact"}),
    ("empirical_fisher", {}),
    ("gradient_deviation", {}),
    ("gradient_deviation", {"elementwise": True}),
    ("gradient_deviation", {"at": "quantized"}),
    ("fisher_output", {}),
    ("fisher_output", {"labels": "model"}),
    ("taylor2", {}),
    ("measured_loss", {}),
    ("measured_kl", {}),
    ("pairwise", {}),
]
IDS = [f"{name} {' '.join(map(str, kwargs.values()))}".strip() for name, kwargs in SHARDED]
MENU = ["w2", "w3a8", "w4a4", "float"]


class Chain(nn.Module):
    """Sixteen layers, so that there are shards of layers, too; importable by workers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.stem = nn.Linear(6, 5)
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(14))
        self.head = nn.Linear(5, 3)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        for block in self.blocks:
            x = x + 0.5 * torch.tanh(block(x))
        return self.head(x)


def inputs(batch_size=5):
    torch.manual_seed(12)
    values, targets = torch.randn(13, 6).double(), torch.randint(0, 3, (13,))
    return mp.DataSet("random", values, targets, batch_size=batch_size)


def menu_of(estimator):
    uniform = {"hessian_top_eigenvalue", "ggn_trace"}
    return ["w2", "w3", "w4", "float"] if estimator in uniform else MENU


def scored(estimator, kwargs, data=None, **others):
    return mp.profile(Chain(), data or inputs(), menu_of(estimator), estimator, **kwargs, **others)


def same(one, other):
    assert np.array_equal(one.loss, other.loss)
    assert np.array_equal(one.stderr, other.stderr)
    assert one.statistics == other.statistics
    assert one.warnings == other.warnings
    assert one.float_loss == other.float_loss
    if one.interactions is not None:
        assert np.array_equal(one.interactions, other.interactions)


@pytest.fixture
def fine(monkeypatch):
    """Cut even the smallest work as finely as it can be."""
    monkeypatch.setattr(shard_plan, "SMALLEST", 1.0)


class Shuffled(Executor):
    """Runs calls one at a time in random order, beginning when they have stopped coming."""

    def __init__(self, seed):
        self._waiting, self._order = [], random.Random(seed)
        self._came = threading.Condition()
        self._thread = None
        self.finished = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        with self._came:
            self._waiting.append((future, partial(fn, *args, **kwargs)))
            self._came.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        return future

    def _run(self):
        with self._came:
            while self._came.wait(0.02):
                pass  # another one came
            numbered = list(enumerate(self._waiting))
            self._waiting, self._thread = [], None
        self._order.shuffle(numbered)
        for number, (future, call) in numbered:
            self.finished.append(number)
            future.set_result(call())


@pytest.fixture(scope="module")
def pools():
    """Three pools of real processes, started once."""
    context = multiprocessing.get_context("spawn")
    made = [ProcessPoolExecutor(count, context) for count in (1, 2, 3)]
    yield made
    for pool in made:
        pool.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "kwargs"), SHARDED, ids=IDS)
def test_workers_do_not_show_in_a_score(estimator, kwargs, fine, pools):
    alone = scored(estimator, kwargs)
    for pool in pools:
        same(alone, scored(estimator, kwargs, executor=pool))


@pytest.mark.parametrize(("estimator", "kwargs"), SHARDED, ids=IDS)
def test_threads_measure_on_models_of_their_own(estimator, kwargs, fine):
    alone = scored(estimator, kwargs)
    with ThreadPoolExecutor(3) as pool:
        same(alone, scored(estimator, kwargs, executor=pool))


@pytest.mark.parametrize("size", [13, 1])
@pytest.mark.parametrize(("estimator", "kwargs"), SHARDED, ids=IDS)
def test_how_batches_fall_into_shards_does_not_show(estimator, kwargs, size, monkeypatch):
    data = inputs(size)
    whole = scored(estimator, kwargs, data)
    monkeypatch.setattr(shard_plan, "SMALLEST", 1.0)
    cut = scored(estimator, kwargs, data)
    assert np.allclose(whole.loss, cut.loss, rtol=1e-12, atol=0)
    assert np.allclose(whole.stderr, cut.stderr, rtol=1e-9, atol=0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from(range(len(SHARDED))))
def test_the_order_in_which_shards_finish_does_not_show(seed, which):
    estimator, kwargs = SHARDED[which]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_plan, "SMALLEST", 1.0)
        executor = Shuffled(seed)
        same(scored(estimator, kwargs), scored(estimator, kwargs, executor=executor))
    assert len(executor.finished) >= 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), which=st.sampled_from(range(len(SHARDED))))
def test_a_run_goes_on_from_any_of_its_shards(seed, which, tmp_path_factory):
    estimator, kwargs = SHARDED[which]
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_plan, "SMALLEST", 1.0)
        first = scored(estimator, kwargs, cache_dir=folder)
        shutil.rmtree(folder / "profiles")
        files = sorted((folder / "shards").iterdir())
        kept = random.Random(seed).sample(files, seed % (len(files) + 1))
        for file in set(files) - set(kept):
            file.unlink()
        reports = []
        again = scored(estimator, kwargs, cache_dir=folder, on_progress=reports.append)
    same(first, again)
    assert sorted((folder / "shards").iterdir()) == files
    done = next(report.done for report in reports if report.stage == "profile")
    assert (done > 0) >= (len(kept) == len(files))


@pytest.mark.parametrize(("estimator", "kwargs"), SHARDED, ids=IDS)
def test_finished_shards_are_not_computed_again(estimator, kwargs, fine, tmp_path):
    scored(estimator, kwargs, cache_dir=tmp_path)
    shutil.rmtree(tmp_path / "profiles")
    executor = Shuffled(0)
    scored(estimator, kwargs, cache_dir=tmp_path, executor=executor)
    assert not executor.finished


def test_another_seed_or_batch_size_finds_no_shards(fine, tmp_path):
    settings = {"probes": 5}
    scored("hessian_trace", settings, cache_dir=tmp_path)
    count = len(list((tmp_path / "shards").iterdir()))
    scored("hessian_trace", settings | {"seed": 1}, cache_dir=tmp_path)
    assert len(list((tmp_path / "shards").iterdir())) == 2 * count
    scored("hessian_trace", settings, inputs(13), cache_dir=tmp_path)
    assert len(list((tmp_path / "shards").iterdir())) > 2 * count


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_counts_probes_and_batches_and_never_goes_back(fine, workers):
    reports = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        scored(
            "hessian_trace",
            {"probes": 9},
            on_progress=reports.append,
            executor=pool if workers else None,
        )
    mine = [report for report in reports if report.stage == "profile"]
    counts = [report.done for report in mine]
    assert {report.total for report in mine} == {9 * 3}
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 27
    assert mine[-1].seconds_left == 0
    if not workers:
        assert set(counts) == set(range(28))


def test_adaptive_rounds_are_one_row_of_steps(fine):
    reports = []
    scored(
        "hessian_trace",
        {"probes": "auto", "settled": 0.0, "most_probes": 20},
        on_progress=reports.append,
    )
    mine = [report for report in reports if report.stage == "profile"]
    assert {report.total for report in mine} == {20 * 3}
    assert [r.done for r in mine] == sorted(r.done for r in mine)
    assert mine[-1].done == 60


def _dies_at(context, shard, step):
    if shard == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": np.array(float(shard))}


def _number(context, shard, step):
    return {"number": np.array(float(shard))}


class Running(mp.sensitivity.protocol.Estimator):
    """Runs given work as an estimator, and keeps what it gave."""

    name = "running"
    scores_activations = True

    def __init__(self, work):
        self._work, self.found = work, []

    def score(self, task):
        self.found = run_shards(task, self._work)
        nothing = np.zeros((len(task.layers), len(task.options)))
        return mp.sensitivity.protocol.Scores(nothing, nothing)


def test_lost_workers_are_named_and_finished_shards_kept(tmp_path):
    deadly = Running(Work(_dies_at, range(12), [1] * 12, "numbers"))
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(mp.errors.DependencyError, match=r"with 5 of 12 shards finished.*kept in"),
    ):
        scored(deadly, {}, executor=pool, cache_dir=tmp_path)
    assert len(list((tmp_path / "shards").iterdir())) == 5


def test_a_pool_that_was_broken_before_is_named():
    class Broken(Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise BrokenExecutor("gone")

    with pytest.raises(mp.errors.DependencyError, match=r"0 of 3 shards.*give cache_dir"):
        scored(Running(Work(_number, range(3), [1] * 3, "numbers")), {}, executor=Broken())


def test_an_error_in_a_worker_is_raised_here_and_ends_the_rest(fine, pools):
    model = Chain()
    data = mp.DataSet("d", inputs().inputs, torch.zeros(13, 3).double(), batch_size=5)
    submitted = []

    class Watched(Executor):
        def submit(self, fn, /, *args, **kwargs):
            submitted.append(pools[0].submit(fn, *args, **kwargs))
            return submitted[-1]

    with torch.no_grad():
        model.head.weight.mul_(1e200)  # whose square is infinite
    with pytest.raises(mp.errors.ModelError, match="on this data"):
        mp.profile(model, data, MENU, "gradient_deviation", loss="mse", executor=Watched())
    assert all(future.done() or future.running() for future in submitted)


def test_a_packed_task_leaves_out_what_is_not_scored_on():
    from mpsearch.sensitivity.shard_payload import packed

    sizes = []

    class Packs(Running):
        def score(self, task):
            sizes.append(packed(task).size)
            return super().score(task)

    data = inputs()
    held = mp.DataSet("d", data.inputs, data.targets, torch.zeros(10_000, 6).double())
    for each in (data, held):
        scored(Packs(Work(_number, range(1), [1], "numbers")), {}, each)
    assert abs(sizes[0] - sizes[1]) < 1000


@given(
    batches=st.integers(1, 400),
    columns=st.integers(1, 300),
    flops=st.floats(1.0, 1e12),
    finest=st.integers(1, 32),
)
def test_cells_cover_everything_once_and_are_neither_too_many_nor_too_small(
    batches, columns, flops, finest
):
    found = shard_plan.cells(batches, columns, flops, finest=finest)
    covered = np.zeros((batches, columns), dtype=int)
    for cell in found:
        covered[cell.batches.start : cell.batches.stop, cell.columns.start : cell.columns.stop] += 1
    assert (covered == 1).all()
    assert len(found) <= shard_plan.MOST
    if len(found) > 1:
        assert all(len(cell.columns) >= min(finest, columns) for cell in found)
        average = batches * columns * flops / len(found)
        assert average >= shard_plan.SMALLEST
    places = [(cell.batches.start, cell.columns.start) for cell in found]
    assert places == sorted(places)


def test_a_long_run_is_cut_into_parts_below_one_percent():
    for batches, columns, finest in [(1, 1280, 4), (3, 400, 4), (40, 32, 4), (5000, 4, 4)]:
        found = shard_plan.cells(batches, columns, 1e11, finest=finest)
        assert max(cell.steps for cell in found) <= 0.01 * batches * columns


@pytest.mark.parametrize("count", [1, 3])
def test_attention_stays_unfused_until_the_last_thread_is_done(count):
    from mpsearch.sensitivity.hessian_products import twice_differentiable

    fused = torch.backends.cuda.flash_sdp_enabled
    assert fused()
    inside = [twice_differentiable() for _ in range(count)]
    for one in inside:
        one.__enter__()
    for one in inside:
        assert not fused()
        one.__exit__(None, None, None)
    assert fused()
