"""Latency tables of this machine: repeatability, additivity, and a search under three budgets.

    python benchmarks/hardware.py                      # EfficientNet-Lite0, search included
    python benchmarks/hardware.py --model torchvision:resnet18 --no-search

Measures a model's kernels twice in ONNX Runtime and compares the tables; compares summed latencies
with whole models that are run; then searches EfficientNet-Lite0 under budgets of latency, weight
memory and activation memory at once, scored on the twenty photos that foolbox ships, and runs the
chosen model. Figures are processor time of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

import mpsearch as mp
from mpsearch.hardware.additivity import budget_met, check_additivity, drift
from mpsearch.hardware.measure_runtime import measure_runtime
from mpsearch.hardware.rounds import Rounds
from mpsearch.hardware.table import CostTable, Entry
from mpsearch.models.registry import as_model

sys.path.insert(0, str(Path(__file__).parent))
MENU = ["float", "w8a8"]


def main() -> None:
    """Run what the arguments ask for and print what it shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--mixed", type=int, default=6)
    parser.add_argument("--tables", nargs=2, type=Path, help="go on with tables measured before")
    parser.add_argument("--estimator", default="gradient_deviation")
    parser.add_argument("--search", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--latency", default="0.8x")
    parser.add_argument("--weights", default="0.5x")
    parser.add_argument("--activations", default="0.7x")
    asked = parser.parse_args()
    model = as_model(asked.model)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 224, 224, generator=generator)
    tables = [CostTable.load(path) for path in asked.tables or ()]
    for number in (1, 2) if not tables else ():
        started = time.perf_counter()
        tables.append(measure_runtime(model.module, image, MENU, rounds=Rounds(asked.rounds)))
        print(f"measured, run {number}: {time.perf_counter() - started:.0f} s by the clock")
    _print_repeatability(*tables)
    table = _checked(model.module, image, tables[0], model.name, asked)
    if asked.search and asked.model == "efficientnet-lite0":
        _search(model, table, asked)


def _print_repeatability(first: CostTable, second: CostTable) -> None:
    def place(entry: Entry) -> object:
        return entry.op, tuple(sorted(entry.shape.items())), entry.option

    before = {place(e): e.values["latency"] for e in first.entries}
    layers = [e for e in second.entries if e.op in {"conv2d", "linear"}]
    apart = [abs(e.values["latency"] / before[place(e)] - 1) for e in layers]
    print(
        f"two runs differ by {np.median(apart):.1%} (median over {len(apart)} shapes and options), "
        f"{np.quantile(apart, 0.9):.1%} (nine tenths), {max(apart):.1%} (most)"
    )
    for option in ("w8a8",):
        plain = {k: v for k, v in before.items() if k[2] == "float"}  # type: ignore[index]
        slower = [
            e
            for e in layers
            if e.option == option and e.values["latency"] > plain[(*place(e)[:2], "float")]  # type: ignore[index]
        ]
        print(f"{option} is slower than float at {len(slower)} of {len(plain)} rows")


def _checked(
    module: torch.nn.Module,
    image: torch.Tensor,
    table: CostTable,
    name: str,
    asked: argparse.Namespace,
) -> CostTable:
    found = check_additivity(
        module, image, table, name=name, mixed=asked.mixed, rounds=Rounds(asked.rounds)
    )
    for each in found.checks:
        print(
            f"{each.allocation:14s} summed {each.predicted / 1e3:7.2f} ms, whole model "
            f"{each.measured / 1e3:7.2f} ms, {each.error:+.1%}"
        )
    print(f"largest error {found.worst:.1%}")
    return table.model_copy(update={"checks": found.checks})


def _search(model: object, table: CostTable, asked: argparse.Namespace) -> None:
    from sensitivity_photos import photos

    whole = photos()
    # Twenty-five allocations are run on what is held out, the photos' flips, in batches whose
    # feature maps stay small.
    assert whole.held_out_inputs is not None
    flips = whole.held_out_inputs[: len(whole)]
    data = mp.DataSet("photos", whole.inputs, whole.targets, flips, whole.targets, batch_size=4)
    started = time.perf_counter()
    answer = mp.search(
        model,
        data,
        MENU,
        {
            "latency": asked.latency,
            "weight_memory": asked.weights,
            "activation_memory": asked.activations,
        },
        hardware=table,
        estimator=asked.estimator,
        verified=True,
    )
    print(f"search: {time.perf_counter() - started:.0f} s by the clock, verification included")
    print(f"status {answer.status}, gap {answer.gap}, predicted loss {answer.predicted_loss:.4g}")
    for name, use in answer.budgets.items():
        print(f"{name}: {use.usage:.6g} of {use.limit:.6g} {use.unit} ({use.requested})")
    kept = sorted(layer for layer, option in answer.layers.items() if option == "float")
    print(f"{len(kept)} of {len(answer.layers)} layers are float: {', '.join(kept) or '-'}")
    found = check_additivity(
        as_model(asked.model).module,
        data.inputs[:1],
        table,
        name="chosen",
        mixed=0,
        further={"chosen": answer.layers},
        rounds=Rounds(asked.rounds),
    )
    pace = drift(found.checks, table.checks)
    print(f"chosen model: {budget_met(answer, found.checks[-1], table, pace)}")
    check = answer.verification
    if check is not None:
        print(
            f"held out: loss {check.allocation.loss:.4f} (float {check.float_model.loss:.4f}), "
            f"{check.metric_name} {check.allocation.metric}"
        )


if __name__ == "__main__":
    main()
