"""The tables and the plot of docs/scaling.md: what is measured here, and what follows from it.

    python benchmarks/scaling.py [--plot docs/images/scaling.png]

1. Costs of operations are measured on two small models; a third, larger one is predicted.
2. Shards are timed; 1 and 2 workers are simulated, then measured.
3. Solving is measured at the size of a 70B and of a 671B model.
4. Those models' profiles are computed from operation counts and simulated on 1 to 64 workers.

Needs transformers and scipy; one thread; about two minutes on an idle core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scaling_measure import (
    FITTED,
    LARGE,
    POOLED,
    Small,
    Unit,
    counted,
    forward_seconds,
    measure,
    packing_rates,
    pooled_seconds,
    quantize_seconds,
    solved,
    submit_seconds,
    timed_shards,
)
from scaling_model import (
    DEEPSEEK_V3,
    ESTIMATORS,
    LLAMA_70B,
    ModelShape,
    Task,
    forwards,
    pair_bytes,
    total_passes,
    worker_bytes,
)
from scaling_simulation import Cluster, Outcome, simulate, spread

DRAWS = {"fisher_output": 1, "ggn_trace": 4, "hessian_trace": 8, "measured_kl": 1}
WORKERS = (1, 2, 4, 8, 16, 32, 64)
TASK = Task(sequences=128, tokens=2048, options=5, draws=32)
LABELS = {"pairs_measured": "`pairwise`, pairs measured"}

LONGEST = 24 * 90.0
"""Hours on 64 GPUs beyond which nothing is simulated: shards would outlive their workers."""

VERIFIED = 24
"""Forward passes of verification: float, the answer, and the baselines with 20 random ones."""

# Sustained bf16 operations a second of one GPU. Dense: 38-43 % of 989e12 in the pre-training of
# Llama 3 (arXiv 2407.21783, table 4). Experts: DeepSeek-V3 spent 180,000 H800 hours on 1e12 tokens
# at 37e9 active parameters (arXiv 2412.19437, section 1), 6 operations each; with FP8.
DENSE_RATE = 400e12
EXPERT_RATE = 6 * 37e9 * 1e12 / (180e3 * 3600)
UNFUSED = 0.5
"""Share of that for double backward passes with attention unfused: assumed."""

GPUS = {"H100 80 GB": 80e9, "H200 141 GB": 141e9}
USABLE = 0.9
BANDWIDTH = 12.5e9
"""Bytes a second between machines: 100 Gbit/s, assumed."""
START = 60.0
"""Seconds until a worker has started and loaded torch on its GPUs: assumed."""
# 419 unexpected interruptions in 54 days of 16,384 GPUs (arXiv 2407.21783, section 3.3.4).
GPU_FAILURES = 419 / (54 * 24 * 16_384)


@dataclass(frozen=True)
class Machine:
    """What was measured here and is taken for every machine.

    Attributes:
        submit: Seconds that the driver spends on a shard.
        variation: Coefficient of variation of shards of equal size.
        packing: Bytes a second that the driver packs and hashes.
        unpacking: Bytes a second that a worker unpacks.
    """

    submit: float = 0.003
    variation: float = 0.2
    packing: float = 0.3e9
    unpacking: float = 0.5e9


@dataclass(frozen=True)
class Case:
    """A large model's profile on a kind of worker.

    Attributes:
        shape: The model.
        estimator: The estimator.
        gpus: GPUs of one worker.
        rate: Operations a second of one worker.
    """

    shape: ModelShape
    estimator: str
    gpus: int
    rate: float

    def run(self, workers: int, machine: Machine, *, bare: bool = False) -> Outcome:
        """Simulate it."""
        count, shards, rounds = total_passes(self.estimator, self.shape, TASK)
        mean = count * forwards(self.shape, TASK) / self.rate / (len(shards) * rounds)
        rng = np.random.default_rng(workers)
        payload = 0.0 if bare else 2.0 * self.shape.weights
        unpacked = payload / machine.unpacking
        cluster = Cluster(
            workers,
            start=0.0 if bare else START + unpacked,
            payload=payload,
            bandwidth=BANDWIDTH,
            submit=machine.submit,
            failures=self.gpus * GPU_FAILURES,
            restart=START + unpacked,
            before=payload / machine.packing,
        )
        drawn = [spread(mean, len(shards), machine.variation, rng) for _ in range(rounds)]
        return simulate(drawn, cluster, rng)


def case(shape: ModelShape, estimator: str, memory: float) -> Case:
    """Choose as many GPUs for a worker as its memory needs, a power of two."""
    needed = worker_bytes(estimator, shape, TASK) / (USABLE * memory)
    gpus = 2 ** math.ceil(math.log2(max(1.0, needed)))
    rate = EXPERT_RATE if any(layer.bank > 1 for layer in shape.layers) else DENSE_RATE
    factor = UNFUSED if estimator == "hessian_trace" else 1.0
    return Case(shape, estimator, gpus, gpus * rate * factor)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n{title}\n\n| " + " | ".join(head) + " |")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def unit_costs() -> None:
    """Measure small models, predict the larger one, measure it, and print the error."""
    quantize = quantize_seconds()
    measure(Small(64, 128, 1), "fisher_output", 1)  # imports
    units = {
        small: Unit(forward_seconds(small.shape, small.tokens), quantize)
        for small in (*FITTED, LARGE)
    }
    for small, unit in units.items():
        rate = 2 * small.shape.active * small.tokens / unit.forward / 1e9
        print(f"{small.shape.name}: {small.shape.weights / 1e6:.2f} M weights, {rate:.0f} GFLOP/s")
    print(f"quantization {quantize * 1e9:.1f} ns a weight")
    rows = []
    for estimator, draws in DRAWS.items():
        calls_taken = []
        for small in FITTED:
            work, calls = counted(small, estimator, draws, units[small])
            calls_taken.append(max(0.0, measure(small, estimator, draws) - work) / calls)
        call = float(np.mean(calls_taken))
        work, calls = counted(LARGE, estimator, draws, units[LARGE])
        found = measure(LARGE, estimator, draws)
        foretold = work + call * calls
        rows.append(
            (f"`{estimator}`", f"{call * 1e3:.2f}", f"{work:.2f}", f"{foretold:.2f}",
             f"{found:.2f}", f"{foretold / found:.2f}")
        )  # fmt: skip
    _table(
        f"Predicted from smaller models: {LARGE.shape.name}",
        ("estimator", "ms a layer call", "arithmetic s", "predicted s", "measured s", "ratio"),
        rows,
    )


def small_pools() -> Machine:
    """Compare 1 and 2 workers with the simulation; give what was measured beside."""
    submit = submit_seconds()
    rows, variation = [], 0.0
    for estimator in ("measured_kl", "hessian_trace"):
        shards = timed_shards(POOLED, estimator, DRAWS[estimator])
        # Shards on the same number of batches and choices differ by noise and by re-used prefixes.
        usual = np.sort(shards)[: -max(1, len(shards) // 20)]
        variation = max(variation, float(np.std(usual) / np.mean(usual)))
        for workers in (1, 2):
            foretold = simulate([shards], Cluster(workers), np.random.default_rng(0)).seconds
            busiest, everyone, wall = pooled_seconds(POOLED, estimator, DRAWS[estimator], workers)
            rows.append(
                (f"`{estimator}`", workers, len(shards), f"{foretold:.2f}", f"{busiest:.2f}",
                 f"{foretold / busiest:.2f}", f"{everyone / busiest:.2f}", f"{wall:.1f}")
            )  # fmt: skip
    head = ("estimator", "workers", "shards", "simulated s", "busiest worker s", "ratio",
            "balance", "wall s")  # fmt: skip
    _table(f"Processes of this machine: {POOLED.shape.name}", head, rows)
    machine = Machine(submit, variation, *packing_rates())
    print(
        f"\na call costs the driver {submit * 1e3:.2f} ms; shards vary by {variation:.0%}; "
        f"packing {machine.packing / 1e9:.2f} GB/s, unpacking {machine.unpacking / 1e9:.2f} GB/s"
    )
    return machine


def solving() -> None:
    """Time exact allocation at the size of large models."""
    rows = []
    for shape in (LLAMA_70B, DEEPSEEK_V3):
        kinds = (True, False) if any(layer.bank > 1 for layer in shape.layers) else (False,)
        for banks in kinds:
            for options in (5, 8):
                for budgets in (1, 2):
                    seconds, found = solved(shape, options, budgets, banks=banks)
                    gap = "" if found.gap is None else f"{found.gap:.1e}"
                    alone = ", each expert alone" if not banks and len(kinds) > 1 else ""
                    rows.append(
                        (shape.name + alone, len(found.indices), options, budgets,
                         f"{seconds:.2f}", found.status, gap)
                    )  # fmt: skip
    head = ("model", "groups", "options", "budgets", "seconds", "status", "gap")
    _table("Solving, measured here", head, rows)


def large_models(machine: Machine) -> None:
    """Compute what large models would take."""
    for shape in (LLAMA_70B, DEEPSEEK_V3):
        one = forwards(shape, TASK)
        rows = []
        for estimator in ESTIMATORS:
            count, shards, rounds = total_passes(estimator, shape, TASK)
            row: list[object] = [LABELS.get(estimator, f"`{estimator}`"), f"{count:.3g}"]
            for memory in GPUS.values():
                chosen = case(shape, estimator, memory)
                alone = chosen.gpus * count * one / chosen.rate / 3600
                row += [f"{alone:.3g}", chosen.gpus]
                if chosen.gpus > 64 or alone / 64 > LONGEST:
                    row.append("–")
                    continue
                took = chosen.run(64 // chosen.gpus, machine).seconds / 3600
                row.append(f"{took:.3g}")
            rows.append([*row, len(shards) * rounds])
        head = ["estimator", "forward passes"]
        for name in GPUS:
            head += [f"GPU-hours, {name}", "GPUs a worker", "hours on 64 GPUs"]
        _table(f"{shape.name}, computed and simulated", [*head, "shards"], rows)
        rate = case(shape, "measured_kl", 141e9)
        check = VERIFIED * one / rate.rate / 60
        print(
            f"\nforward pass of all data: {one:.3g} operations; verification on one worker of "
            f"{rate.gpus} H200: {check:.2g} minutes; `pairwise` would keep "
            f"{pair_bytes(shape, TASK) / 1e12:.3g} TB of outputs for one sequence"
        )


def scaling_plot(machine: Machine, target: Path | None) -> None:
    """Simulate 1 to 64 workers, print the speed-ups, and draw them."""
    chosen = [
        case(LLAMA_70B, name, 141e9) for name in ("fisher_output", "hessian_trace", "measured_kl")
    ]
    rows, lines = [], {}
    for one in chosen:
        alone = one.run(1, machine, bare=True).seconds
        for bare in (False, True):
            found = [one.run(w, machine, bare=bare).seconds for w in WORKERS]
            name = f"{one.estimator}{', model in place' if bare else ''}"
            lines[name] = [alone / seconds for seconds in found]
            speeds = [f"{speed:.1f}" for speed in lines[name]]
            rows.append([f"`{one.estimator}`", "in place" if bare else "sent", *speeds])
    head = ["estimator", "model", *map(str, WORKERS)]
    title = "Speed-up over one worker with the model in place, 70B on workers of H200, simulated"
    _table(title, head, rows)
    if target is not None:
        _draw(lines, target)


def _draw(lines: dict[str, list[float]], target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=100)
    axes.plot(WORKERS, WORKERS, color="0.7", linewidth=1, label="ideal")
    colors = {
        "fisher_output": "tab:orange",
        "hessian_trace": "tab:green",
        "measured_kl": "tab:blue",
    }
    for name, speeds in lines.items():
        style = "--" if "place" in name else "-"
        axes.plot(WORKERS, speeds, style, color=colors[name.split(",")[0]], marker=".", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(WORKERS, [str(w) for w in WORKERS])
    axes.set_yticks(WORKERS, [str(w) for w in WORKERS])
    axes.set_xlabel("workers")
    axes.set_ylabel("speed-up (simulated)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    print(f"\nwrote {target}")


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="where to write the plot (PNG)")
    parser.add_argument("--pools", action="store_true", help="only the pools")
    parser.add_argument("--no-measuring", action="store_true", help="only what is computed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine()
    if chosen.pools:
        small_pools()
        return
    if not chosen.no_measuring:
        unit_costs()
        machine = small_pools()
        solving()
    large_models(machine)
    scaling_plot(machine, chosen.plot)


if __name__ == "__main__":
    main()
