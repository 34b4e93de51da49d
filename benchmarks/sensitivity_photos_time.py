"""Time of fisher_output and of ModelOpt's gradient search on EfficientNet-Lite0, alternately.

    python benchmarks/sensitivity_photos_time.py PYTHON [--threads 1] [--rounds 2]

PYTHON is the interpreter of an environment with nvidia-modelopt. Both score the twenty photos at
five weight options with labels and solve at five average bits, in seconds of the processor; imports
and loading are not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import torch
from sensitivity_photos import MENU, efficientnet_lite0, photos

import mpsearch as mp
import mpsearch.sensitivity.fisher_output


def ours() -> float:
    """Score by fisher_output and solve."""
    model, data = efficientnet_lite0(), photos()
    started = time.process_time()
    profile = mp.profile(model, data, MENU, "fisher_output", loss="cross_entropy")
    costs = mp.price(model, data, MENU, resources=["average_bits"])  # all that is limited
    mp.allocate(profile, costs, {"average_bits": 5.1})
    return time.process_time() - started


def theirs(python: str, threads: int) -> float:
    """Score and solve by ModelOpt, in a process of its own."""
    script = Path(__file__).with_name("sensitivity_photos_modelopt.py")
    run = subprocess.run(
        [python, str(script), str(threads), "5"], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    return min(float(row["seconds"]) for row in found)


def main() -> None:
    """Time both in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    pairs = []
    for _ in range(chosen.rounds):
        pairs.append((ours(), theirs(chosen.python, chosen.threads)))
        print(f"fisher_output {pairs[-1][0]:.1f} s, ModelOpt {pairs[-1][1]:.1f} s", flush=True)
    ratios = [a / b for a, b in pairs]
    print(
        f"fisher_output / ModelOpt's gradient search (<= 0.33): {statistics.median(ratios):.2f} "
        f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    )


if __name__ == "__main__":
    main()
