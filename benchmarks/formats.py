"""Time of rounding 16 M weights, as a ratio to one out-of-place multiplication in the same run.

    python benchmarks/formats.py [--threads 2] [--rounds 9] [--check]

Every round times `w * 1.0`, then each format, so that a machine that slows down slows down both;
the ratio of a format is taken within its round, and its median and quartiles are printed.
torch's own `fake_quantize_per_channel_affine`, which is given its scales, stands beside them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch

from mpsearch import formats

SHAPE = (4096, 4096)
INTEGERS = ("int2", "int4", "int8", "int16", "int4_asym", "int4_g128", "int8_tensor")
FLOATS = (
    *("fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "e3m4"),
    *("mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4", "bfp8"),
)
UNBOUND = ("fp16", "binary", "ternary", "nf4", "int4_mse", "fp4_auto", "any4")
BOUNDS = dict.fromkeys(INTEGERS, 4.0) | dict.fromkeys(FLOATS, 8.0)
"""Largest median ratio that --check lets pass."""


def seconds(call: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    calls: dict[str, Callable[[], object]], reference: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """Return the ratios of every call to the reference, one per round after a warm-up."""
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            unit = min(seconds(reference) for _ in range(3))
            ratio = seconds(call) / unit
            if turn:
                ratios[name].append(ratio)
    return ratios


def torch_per_channel(weight: torch.Tensor) -> Callable[[], object]:
    """Return torch's own rounding to int8 channels, its scales computed beforehand."""
    scale = weight.abs().amax(1) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return lambda: torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


def report(ratios: dict[str, list[float]]) -> list[str]:
    """Print one line per format and return those whose median is above their bound."""
    failed = []
    print(f"{'format':<22}{'median':>8}{'quartiles':>18}{'bound':>8}")
    for name, values in ratios.items():
        low, median, high = statistics.quantiles(values, n=4)
        bound = BOUNDS.get(name)
        if bound is not None and median > bound:
            failed.append(name)
        limit = f"{bound:g}" if bound is not None else "-"
        print(f"{name:<22}{median:>8.2f}{f'{low:.2f} … {high:.2f}':>18}{limit:>8}")
    return failed


def main() -> int:
    """Measure, print, and return 1 when --check finds a bound broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow", action="store_true", help="also formats that search or learn")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bound is broken")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    names = (*INTEGERS, *FLOATS, *(UNBOUND if arguments.slow else UNBOUND[:4]))
    calls: dict[str, Callable[[], object]] = {
        name: partial(formats.get(name).fake_quantize, weight) for name in names
    }
    calls["torch per channel"] = torch_per_channel(weight)
    print(
        f"{SHAPE[0]} x {SHAPE[1]} float32, {arguments.threads} threads, torch {torch.__version__}"
    )
    failed = report(measure(calls, lambda: weight * 1.0, arguments.rounds))
    if failed:
        print(f"above their bound: {', '.join(failed)}")
    return int(arguments.check and bool(failed))


if __name__ == "__main__":
    sys.exit(main())
