"""Cost of estimators beside bounds and peers, as ratios measured in one run.

    python benchmarks/sensitivity.py [--threads 1] [--rounds 5] [--modelopt PYTHON]
        [--part gradients|hessians|precision|all]

torchvision's ResNet-18 with random weights, 64 images of 64 x 64, five weight options. Everything
is timed alternately with what it is compared with, in seconds of the processor, which other work on
the machine hardly changes; a ratio is the median over the rounds and comes with its least and
largest value. `--modelopt` names the interpreter of an environment that has
nvidia-modelopt, which pins other versions than ours; without it those lines are left out and said
to be. The digits network shows how fast an estimate of the trace becomes precise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.models.digits import digits, digits_resnet
from mpsearch.sensitivity.hessian_products import hessian_vector_products, rademacher
from mpsearch.sensitivity.ranking import spearman

OPTIONS = ["w2", "w3", "w4", "w6", "w8"]
HERE = Path(__file__).parent


def seconds(work: Callable[[], object]) -> float:
    """Time one call, in seconds of the processor over all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def ratio(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Time two things alternately and print how much longer the first takes."""
    ours(), theirs()
    found = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    ratios = [a / b for a, b in found]
    print(
        f"{name:<66} {statistics.median(ratios):6.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]   "
        f"{statistics.median(a for a, _ in found):.3f} s / "
        f"{statistics.median(b for _, b in found):.3f} s",
        flush=True,
    )


def resnet() -> tuple[nn.Module, mp.DataSet]:
    """Make the network and its data, the same in every process."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    inputs, targets = torch.randn(64, 3, 64, 64), torch.randint(0, 1000, (64,))
    return model, mp.DataSet("noise", inputs, targets, batch_size=64)


def backward(model: nn.Module, data: mp.DataSet) -> list[Tensor]:
    """One plain forward and backward pass."""
    loss = nn.functional.cross_entropy(model(data.inputs), data.targets)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def bare_products(model: nn.Module, data: mp.DataSet, probes: int) -> None:
    """Hessian-vector products by autograd on one retained graph, and nothing else."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    loss = nn.functional.cross_entropy(model(data.inputs), data.targets)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    for number in range(probes):
        vector = list(rademacher(weights, (0, number)))
        torch.autograd.grad(
            gradients, weights, grad_outputs=vector, retain_graph=number < probes - 1
        )


def pyhessian_probes(model: nn.Module, data: mp.DataSet, probes: int) -> list[list[float]]:
    """z.(Hz) per layer by PyHessian, one pass over the data each."""
    from pyhessian import hessian

    reference = hessian(
        model, nn.functional.cross_entropy, dataloader=list(data.batches()), cuda=False
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for number in range(probes):
        vector = list(rademacher(parameters, (0, number)))
        _, product = reference.dataloader_hv_product(vector)
        found.append(
            [
                float((z * h).sum())
                for z, h, p in zip(vector, product, parameters, strict=True)
                if p.ndim > 1
            ]
        )
    return found


def against_modelopt(python: str, threads: int) -> None:
    """Score in a process of its own each, ours and ModelOpt's, and compare."""
    found = {}
    for who, interpreter in (("ours", sys.executable), ("modelopt", python)):
        command = [interpreter, str(HERE / "sensitivity_modelopt.py"), who, str(threads)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            print(f"{who} failed:\n{run.stderr[-2000:]}")
            return
        found[who] = json.loads(run.stdout.splitlines()[-1])
    ours, theirs = found["ours"], found["modelopt"]
    names = sorted(set(ours["scores"]) & set(theirs["scores"]))
    pairs = [
        (ours["scores"][name][option], theirs["scores"][name][option])
        for name in names
        for option in theirs["scores"][name]
        if option in ours["scores"][name]
    ]
    rank = spearman([a for a, _ in pairs], [b for _, b in pairs])
    print(f"fisher_output against ModelOpt's gradient scoring ({len(names)} layers):")
    print(f"  seconds {ours['seconds']:.2f} / {theirs['seconds']:.2f}", end="")
    print(f" = {theirs['seconds'] / ours['seconds']:.1f} times faster")
    print(f"  Spearman of {len(pairs)} scores {rank:.3f}")
    print(f"  memory while scoring {ours['mib']:.0f} / {theirs['mib']:.0f} MiB", flush=True)


def precision(rounds: int) -> None:
    """How long until the traces of the digits network have the precision of 12 probes."""
    model, data = digits_resnet(), digits()
    start = seconds(lambda: pyhessian_probes(model, data, 12))
    samples = np.array(pyhessian_probes(model, data, 12))
    theirs = np.median(samples.std(0, ddof=1) / np.sqrt(12) / np.abs(samples.mean(0)))
    print(f"PyHessian, 12 probes: relative standard error {theirs:.3f}, {start:.2f} s")
    for draws in (2, 3, 4):
        times, errors = [], []
        for seed in range(rounds):
            settings = {"draws": draws, "seed": seed}
            times.append(
                seconds(lambda s=settings: mp.profile(model, data, ["w4"], "ggn_trace", **s))
            )  # type: ignore[misc]
            found = mp.profile(model, data, ["w4"], "ggn_trace", **settings)  # type: ignore[arg-type]
            errors.append(float(np.median(found.stderr / found.loss)))
        exact = mp.profile(model, data, ["w4"], "ggn_trace", draws="exact").loss
        error = float(np.median(np.abs(found.loss - exact) / exact))
        print(
            f"ggn_trace, {draws} draws: relative standard error {statistics.median(errors):.3f} "
            f"(true error {error:.3f}), {statistics.median(times):.2f} s = "
            f"{statistics.median(times) / start:.2f} of PyHessian's time",
            flush=True,
        )


def gradients(rounds: int) -> None:
    """Compare estimators that differentiate once with one plain forward and backward pass."""
    model, data = resnet()
    for name, bound in (("gradient_deviation", " (<= 2.5)"), ("fisher_output", "")):
        ratio(
            f"{name} / one forward + backward{bound}",
            lambda name=name: mp.profile(model, data, OPTIONS, name),  # type: ignore[misc]
            lambda: backward(model, data),
            rounds,
        )


def hessians(rounds: int) -> None:
    """Compare probes of the Hessian with bare products and with PyHessian."""
    model, data = resnet()
    weights = [p for p in model.parameters() if p.ndim > 1]

    def products() -> None:
        loss = nn.functional.cross_entropy(model(data.inputs), data.targets)
        vectors = (list(rademacher(weights, (0, number))) for number in range(4))
        for vector, product in hessian_vector_products(loss, weights, vectors, 4):
            [float((z * h).sum(dtype=torch.float64)) for z, h in zip(vector, product, strict=True)]

    ratio(
        "4 probes of hessian_trace / 4 bare autograd products (<= 1.1)",
        products,
        lambda: bare_products(model, data, 4),
        rounds,
    )
    ratio(
        "4 probes of hessian_trace / 4 of PyHessian (< 1)",
        products,
        lambda: pyhessian_probes(model, data, 4),
        rounds,
    )


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--part", choices=["gradients", "hessians", "precision", "all"], default="all"
    )
    parser.add_argument("--modelopt", help="interpreter of an environment with nvidia-modelopt")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    parts = ["gradients", "hessians", "precision"] if chosen.part == "all" else [chosen.part]
    print(f"{OPTIONS}, {chosen.threads} thread(s); ResNet-18 on 64 images of 64 px")
    print(f"{'ratio of seconds':<66} median [least, largest]", flush=True)
    if "gradients" in parts:
        gradients(chosen.rounds)
    if "hessians" in parts:
        hessians(chosen.rounds)
    if chosen.modelopt:
        against_modelopt(chosen.modelopt, chosen.threads)
    else:
        print("ModelOpt: not compared; name its interpreter with --modelopt")
    if "precision" in parts:
        precision(chosen.rounds)


if __name__ == "__main__":
    main()
