"""Costs of single operations and of whole estimators, measured on this machine."""

from __future__ import annotations

import hashlib
import os
import pickle
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scaling_model import Linear, ModelShape, Task, total_passes

import mpsearch as mp
from mpsearch import formats
from mpsearch_solvers import Problem, Solution, solve

__all__ = [
    "FITTED",
    "LARGE",
    "OPTIONS",
    "POOLED",
    "Small",
    "Timed",
    "Unit",
    "build",
    "counted",
    "forward_seconds",
    "measure",
    "packing_rates",
    "pooled_seconds",
    "quantize_seconds",
    "solved",
    "submit_seconds",
    "timed_shards",
]

OPTIONS = ["w4", "w8"]


SOLVING = 30.0
"""Seconds that a problem gets."""


@dataclass(frozen=True)
class Small:
    """A Llama of random weights: speed, never quality.

    Attributes:
        hidden: Width.
        wide: Width inside the feed-forward part.
        blocks: Blocks.
        vocabulary: Tokens.
        sequences: Inputs, one a batch.
        tokens: Tokens in each.
    """

    hidden: int
    wide: int
    blocks: int
    vocabulary: int = 512
    sequences: int = 4
    tokens: int = 64

    @property
    def shape(self) -> ModelShape:
        """The same for the formulas."""
        h, quarter = self.hidden, self.hidden // 4
        layers = (
            Linear(h, h, 2 * self.blocks),
            Linear(h, quarter, 2 * self.blocks),
            Linear(h, self.wide, 2 * self.blocks),
            Linear(self.wide, h, self.blocks),
            Linear(h, self.vocabulary),
            Linear(self.vocabulary, h, share=0),
        )
        name = f"Llama {h} wide, {self.blocks} blocks"
        return ModelShape(name, self.blocks, h, 8, self.vocabulary, layers)

    def task(self, draws: int) -> Task:
        """What is asked of it."""
        return Task(self.sequences, self.tokens, len(OPTIONS), draws)


FITTED = (Small(192, 512, 2), Small(320, 896, 4))
LARGE = Small(640, 1792, 5)
POOLED = FITTED[1]


def build(small: Small) -> tuple[torch.nn.Module, mp.DataSet]:
    """Make the model and its inputs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=small.hidden,
        intermediate_size=small.wide,
        num_hidden_layers=small.blocks,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=small.vocabulary,
        tie_word_embeddings=False,
        use_cache=False,
    )
    tokens = torch.randint(0, small.vocabulary, (small.sequences, small.tokens))
    return LlamaForCausalLM(config).eval(), mp.DataSet("random", tokens, tokens, batch_size=1)


def _median(run: Callable[[], object], seconds: float = 0.15) -> float:
    run()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return statistics.median(times)


def forward_seconds(shape: ModelShape, tokens: int) -> float:
    """Measure the layers of a model one by one: seconds of one sequence's forward pass.

    What a layer takes per operation depends on its size; each size is timed, and nothing else of
    the model is run.
    """
    total = 0.0
    for layer in (one for one in shape.layers if one.share):
        weight = torch.randn(layer.outputs, layer.inputs)
        values = torch.randn(1, tokens, layer.inputs)
        total += layer.count * _median(
            lambda v=values, w=weight: torch.nn.functional.linear(v, w)  # type: ignore[misc]
        )
    return total


def quantize_seconds(weights: int = 512 * 512) -> float:
    """Measure fake quantization by channel: seconds a weight."""
    fmt = formats.get("int4")
    weight = torch.randn(512, weights // 512)
    return _median(lambda: fmt.fake_quantize(weight, channel_axis=0)) / weights


def packing_rates() -> tuple[float, float]:
    """Measure packing with its hash, and unpacking, of a model: bytes a second each."""
    model, _ = build(LARGE)
    content = pickle.dumps(model)
    packing = _median(lambda: hashlib.sha256(pickle.dumps(model)).hexdigest())
    return len(content) / packing, len(content) / _median(lambda: pickle.loads(content))


class Timed(Executor):
    """Runs everything here and now, and notes the processor time of every call."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds: list[float] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it."""
        future: Future[Any] = Future()
        found, seconds, _ = _clocked(function, *args, **kwargs)
        self.seconds.append(seconds)
        future.set_result(found)
        return future


class TimedPool(ProcessPoolExecutor):
    """A pool of processes that notes the processor time that each of them spent on calls."""

    def __init__(self, workers: int) -> None:
        """Start the processes and have them load torch."""
        super().__init__(workers)
        self.seconds: dict[int, float] = {}
        for future in [super(TimedPool, self).submit(_warm, 0.3) for _ in range(2 * workers)]:
            future.result()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send it to a process."""
        outer: Future[Any] = Future()

        def take(inner: Future[Any]) -> None:
            error = inner.exception()
            if error is not None:
                outer.set_exception(error)
                return
            found, seconds, process = inner.result()
            self.seconds[process] = self.seconds.get(process, 0.0) + seconds
            outer.set_result(found)

        super().submit(_clocked, function, *args, **kwargs).add_done_callback(take)
        return outer


def _clocked(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> tuple[Any, float, int]:
    started = time.process_time()
    found = function(*args, **kwargs)
    return found, time.process_time() - started, os.getpid()


def _warm(seconds: float) -> float:
    torch.set_num_threads(1)
    time.sleep(seconds)
    return float(torch.ones(1).sum())


def measure(small: Small, estimator: str, draws: int) -> float:
    """Score a model by an estimator in this process: seconds of the processor."""
    executor = Timed()
    started = time.process_time()
    _profile(small, estimator, draws, executor)
    return time.process_time() - started


@dataclass(frozen=True)
class Unit:
    """Costs of single operations here.

    Attributes:
        forward: Seconds of one sequence's forward pass through the layers, from `forward_seconds`.
        quantize: Seconds a weight, from `quantize_seconds`.
    """

    forward: float
    quantize: float


def counted(small: Small, estimator: str, draws: int, unit: Unit) -> tuple[float, float]:
    """Count what an estimator does to a model.

    Args:
        small: The model.
        estimator: The estimator.
        draws: Its draws or probes.
        unit: What operations cost.

    Returns:
        Seconds of arithmetic by the formulas, and calls of layers, which take time of their own.
    """
    task = small.task(draws)
    count, shards, _ = total_passes(estimator, small.shape, task)
    # Shards of choices quantize anew; the others once for all that a process does.
    repeated = task.sequences if estimator == "measured_kl" else len(shards[:1])
    weights = repeated * len(OPTIONS) * unit.quantize * small.shape.weights
    calls = count * task.sequences * small.shape.count
    return count * task.sequences * unit.forward + weights, calls


def timed_shards(small: Small, estimator: str, draws: int) -> list[float]:
    """Measure the processor time of every shard, one after the other in this process."""
    executor = Timed()
    _profile(small, estimator, draws, executor)
    return executor.seconds


def pooled_seconds(
    small: Small, estimator: str, draws: int, workers: int
) -> tuple[float, float, float]:
    """Measure a profile by a pool of processes.

    Returns:
        Processor seconds of the busiest worker and of all of them, and seconds on the wall.
    """
    with TimedPool(workers) as pool:
        wall = _profile(small, estimator, draws, pool)
        return max(pool.seconds.values()), sum(pool.seconds.values()), wall


def submit_seconds(calls: int = 200) -> float:
    """Measure what handing a call to a pool and taking its answer takes the driver."""
    with TimedPool(1) as pool:
        started = time.perf_counter()
        for future in [pool.submit(int, 0) for _ in range(calls)]:
            future.result()
        return (time.perf_counter() - started) / calls


def _profile(small: Small, estimator: str, draws: int, executor: Executor) -> float:
    model, data = build(small)
    names = {"ggn_trace": "draws", "hessian_trace": "probes"}
    settings: dict[str, Any] = {names[estimator]: draws} if estimator in names else {}
    started = time.perf_counter()
    mp.profile(model, data, OPTIONS, estimator, loss="next_token", executor=executor, **settings)
    return time.perf_counter() - started


def solved(shape: ModelShape, options: int, budgets: int, *, banks: bool) -> tuple[float, Solution]:
    """Solve an allocation of a model's size with losses drawn at random.

    Args:
        shape: Whose layers.
        options: How many options each has.
        budgets: 1: memory; 2: and another that counts operations.
        banks: Whether the experts of a block share an option; otherwise each has its own.

    Returns:
        Seconds and the solution.
    """
    rng = np.random.default_rng(options + 10 * budgets)
    sizes, active = _groups(shape, banks=banks)
    bits = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0])[8 - options :]
    sensitivity = sizes * rng.lognormal(0.0, 1.5, len(sizes))
    noise = np.exp(rng.normal(0, 0.2, (len(sizes), options)))
    loss = sensitivity[:, None] * 4.0**-bits * noise
    costs = {"weight_memory": sizes[:, None] * bits / 8.0, "bops": active[:, None] * bits * 16.0}
    costs = dict(list(costs.items())[:budgets])
    limits = {
        name: float(cost.min(1).sum() + 0.4 * (cost.max(1).sum() - cost.min(1).sum()))
        for name, cost in costs.items()
    }
    started = time.perf_counter()
    solution = solve(Problem.from_arrays(loss, costs, limits), gap=1e-6, time_limit=SOLVING)
    return time.perf_counter() - started, solution


def _groups(shape: ModelShape, *, banks: bool) -> tuple[Any, Any]:
    sizes: list[float] = []
    active: list[float] = []
    for layer in shape.layers:
        one = float(layer.inputs * layer.outputs)
        together = layer.bank if banks else 1
        count = layer.count // together
        sizes += [one * together] * count
        active += [one * together * layer.share] * count
    return np.array(sizes), np.array(active)
