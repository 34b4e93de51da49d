"""All estimators on EfficientNet-Lite0: the allocations that their scores lead to, measured.

    python benchmarks/sensitivity_photos_table.py [--threads 2] [--cache DIR] [--float]
        [--modelopt JSON] [--estimators NAMES]

Scores come from the twenty photos, without labels from the divergence to the float model; those of
estimators that read a first-order gradient come from cross-entropy with labels, as do those of
`fisher_output`, `taylor2` and `measured_loss` once more. Allocations at 4, 5 and 6 average weight
bits are measured by the divergence on sixty other views. `--float` lets layers stay unquantized, at
32 bits.
`--modelopt` names a file that sensitivity_photos_modelopt.py printed; its allocations are measured
alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sensitivity_photos import MENU, efficientnet_lite0, photos
from torch import nn

import mpsearch as mp
from mpsearch.engine.meter import AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.formats import parse_option
from mpsearch.losses import as_loss
from mpsearch.sensitivity import known
from mpsearch.sensitivity.evidence import Comparison

BUDGETS = (4.0, 5.0, 6.0)
FROM_GRADIENTS = ["gradient_deviation", "empirical_fisher"]
ALSO_WITH_LABELS = ["fisher_output", "taylor2", "measured_loss"]
TOO_LONG = {"hessian_top_eigenvalue"}
"""Fifty layers times up to thirty Hessian-vector products: ten minutes, only where it is named."""


def compared(
    model: nn.Module, data: mp.DataSet, menu: list[str], names: Sequence[str], **settings: object
) -> Comparison:
    """Compare estimators at the budgets."""
    widest = 32.0 if "float" in menu else 8.0
    return mp.compare_estimators(
        model,
        data,
        menu,
        names,
        fractions=[(bits - 2) / (widest - 2) for bits in BUDGETS],
        judged_by="kl_to_float",
        allocations=12,
        **settings,  # type: ignore[arg-type]
    )


def show(found: Comparison, labels: str) -> None:
    """Print one row of a table for every estimator."""
    for row in found.rows:
        name = f"`{row.estimator}`" + (f" ({row.chosen})" if row.chosen else "") + labels
        ranks = (row.single_spearman, row.single_kendall, row.whole_spearman)
        cells = [f"{row.seconds:.0f}", *("–" if r is None else f"{r:.2f}" for r in ranks)]
        cells += [f"{loss:.4f}" for loss in row.losses]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for name, reason in found.failures.items():
        print(f"<!-- {name}: {reason} -->", flush=True)


def peers(path: Path, model: nn.Module, data: mp.DataSet, leave_float: bool) -> None:
    """Measure the allocations of another tool."""
    meter = AllocationMeter(
        Quantizer(model, {}), data.verification_batches(), as_loss("kl_to_float")
    )
    found: Iterable[dict[str, object]] = json.loads(path.read_text().splitlines()[-1])
    rows = sorted((r for r in found if r["float"] is leave_float), key=lambda r: str(r["budget"]))
    losses = []
    for row in rows:
        layers = row["layers"]
        assert isinstance(layers, dict)
        choice = {layer: parse_option(option) for layer, option in layers.items()}
        losses.append(f"{meter.measure(choice).loss:.4f}")
    seconds = "–".join(f"{r['seconds']:.0f}" for r in (rows[0], rows[-1]))
    print(
        f"| ModelOpt, gradient | {seconds} | – | – | – | " + " | ".join(losses) + " |", flush=True
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--float", action="store_true")
    parser.add_argument("--modelopt", type=Path)
    parser.add_argument("--estimators", help="names with commas; all by default")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, data = efficientnet_lite0(), photos()
    menu = [*MENU, "float"] if chosen.float else MENU
    names = chosen.estimators.split(",") if chosen.estimators else [e.name for e in known()]
    print("| scores | seconds | ρ single | τ single | ρ whole | 4 bits | 5 bits | 6 bits |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    if chosen.modelopt:
        peers(chosen.modelopt, model, data, chosen.float)
    common = {"cache_dir": chosen.cache}
    for name in names:
        if (name not in TOO_LONG or chosen.estimators) and name not in FROM_GRADIENTS:
            show(compared(model, data, menu, [name], loss="kl_to_float", **common), "")
    for name in FROM_GRADIENTS + ALSO_WITH_LABELS:
        if name in names:
            found = compared(model, data, menu, [name], loss="cross_entropy", **common)
            show(found, ", labels")


if __name__ == "__main__":
    main()
