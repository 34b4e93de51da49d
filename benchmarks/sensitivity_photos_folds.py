"""How well estimators do on photos that they have not seen, at many budgets of EfficientNet-Lite0.

    python benchmarks/sensitivity_photos_folds.py [--threads 2] [--cache DIR] [--folds 5]
        [--estimators NAMES]

The twenty photos are cut into folds. Every estimator scores on all but one of them, and the
allocations that its scores lead to at thirteen budgets of average weight bits are measured on that
fold, by the divergence from the float model. One budget of one estimator is mostly chance; the
geometric mean of the ratio to `pairwise` over all folds and budgets, with its standard error over
them, says more. Budgets of one fold are not independent, so the error is an optimistic one. A run
that was killed goes on from DIR.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from sensitivity_photos import MENU, efficientnet_lite0, photos
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.engine.meter import AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.formats import parse_option
from mpsearch.losses import as_loss

BUDGETS = np.arange(3.25, 6.5, 0.25)
REFERENCE = "pairwise"
OTHERS = ("measured_kl", "taylor2", "ggn_trace", "fisher_output", "sqnr")


def folds(count: int, number: int) -> list[np.ndarray]:
    """Cut positions at random, the same way every time."""
    drawn = np.random.default_rng(0).permutation(count)
    return [np.sort(drawn[first::number]) for first in range(number)]


def on_unseen(
    model: nn.Module,
    scored: mp.DataSet,
    unseen: Iterable[Tensor],
    names: Sequence[str],
    cache: Path | None,
    proposals: int = 0,
) -> np.ndarray:
    """Score on some photos and measure on batches of others, estimators x budgets.

    With proposals, the allocations of the first estimator that were refined by so many follow.
    """
    costs = mp.price(model, scored, MENU, resources=["average_bits"])
    batches = [(inputs, None) for inputs in unseen]
    meter = AllocationMeter(Quantizer(model, {}), batches, as_loss("kl_to_float"))
    rows = [(name, 0) for name in names] + [(names[0], proposals)] * bool(proposals)
    found = []
    for name, refine in rows:
        profile = mp.profile(model, scored, MENU, name, loss="kl_to_float", cache_dir=cache)
        gap = 1e-6 if profile.interactions is None else 1e-3  # pairs are not proven much closer
        for bits in BUDGETS:
            chosen = mp.search(
                model,
                scored,
                MENU,
                {"average_bits": float(bits)},
                loss="kl_to_float",
                known_profile=profile,
                known_costs=costs,
                gap=gap,
                time_limit=10.0,
                refine=refine,
                verified=False,
            )
            layers = {layer: parse_option(option) for layer, option in chosen.layers.items()}
            found.append(meter.measure(layers).loss)
    return np.array(found).reshape(len(rows), len(BUDGETS))


def show(losses: np.ndarray, names: Sequence[str]) -> None:
    """Print geometric means of ratios to the first estimator; losses `[..., estimators, budgets]`.

    Standard errors are over all the rest of the axes.
    """
    ratios = np.log(losses) - np.log(losses[..., :1, :])
    print(f"| scores | loss on unseen photos over that of `{names[0]}` | standard error |")
    print("|---|---:|---:|")
    for row, name in enumerate(names[1:], 1):
        each = ratios[..., row, :].ravel()
        error = each.std(ddof=1) / np.sqrt(each.size)
        print(f"| `{name}` | {np.exp(each.mean()):.2f} | {np.exp(each.mean()) * error:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--estimators", default=",".join(OTHERS))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, data = efficientnet_lite0(), photos()
    names = [REFERENCE, *chosen.estimators.split(",")]
    losses = []
    for number, unseen in enumerate(folds(len(data), chosen.folds), 1):
        seen = np.setdiff1d(np.arange(len(data)), unseen)
        scored = mp.DataSet("photos seen", data.inputs[seen], batch_size=len(seen))
        losses.append(on_unseen(model, scored, [data.inputs[unseen]], names, chosen.cache))
        print(f"fold {number} of {chosen.folds}", flush=True)
    show(np.array(losses), names)


if __name__ == "__main__":
    main()
