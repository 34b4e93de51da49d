"""`mpsearch estimators`: what can score layers, and which of it to trust on a model."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from mpsearch.cli import arguments as args
from mpsearch.cli.console import print_document, progress_bars, show
from mpsearch.errors import InputError
from mpsearch.sensitivity import known

if TYPE_CHECKING:
    from mpsearch.sensitivity.evidence import Comparison

__all__ = ["estimators_app"]

estimators_app = typer.Typer(
    help="List the sensitivity estimators, or compare them on a model.", no_args_is_help=False
)


@estimators_app.callback(invoke_without_command=True)
def estimators_command(context: typer.Context, as_json: args.JsonOption = False) -> None:
    """List the sensitivity estimators: what each computes, what it costs, where it is from."""
    if context.invoked_subcommand is not None:
        return
    entries = known()
    if as_json:
        listed = [dataclasses.asdict(entry) for entry in entries]
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("estimator", "score", "passes", "activations", "source"):
        table.add_column(column)
    for entry in entries:
        table.add_row(
            entry.name,
            entry.summary,
            entry.passes,
            "yes" if entry.scores_activations else "no",
            entry.source,
        )
    show(table)


@estimators_app.command("compare")
def compare_command(
    model: args.ModelArgument,
    data: args.DataOption,
    options: args.OptionsOption = "w2a8,w3a8,w4a8,w6a8,w8a8",
    estimators: Annotated[
        str | None, typer.Option("--estimators", help="Names with commas; all by default.")
    ] = None,
    loss: args.LossOption = None,
    judged_by: Annotated[
        str | None,
        typer.Option("--judged-by", help="Loss that allocations at budgets are measured by."),
    ] = None,
    fractions: Annotated[
        str,
        typer.Option(
            "--fractions", help="Budgets, from the fewest (0) to the most (1) average weight bits."
        ),
    ] = "0.3,0.5,0.7",
    allocations: Annotated[
        int, typer.Option("--allocations", help="Random whole allocations to measure.")
    ] = 24,
    seed: args.SeedOption = 0,
    device: args.DeviceOption = "cpu",
    cache_dir: args.CacheOption = None,
    out: args.OutOption = None,
    png: Annotated[Path | None, typer.Option("--png", help="Draw it here.")] = None,
    as_json: args.JsonOption = False,
) -> None:
    """Measure how well each estimator ranks layers and allocations of this model, and its cost.

    mpsearch estimators compare digits-resnet --data digits --options w2a8,w4a8,w8a8
    """
    from mpsearch.sensitivity.evidence import compare_estimators

    with progress_bars() as on_progress:
        found = compare_estimators(
            model,
            data,
            args.options_of(options),
            estimators.split(",") if estimators else None,
            loss=loss,
            judged_by=judged_by,
            fractions=_fractions(fractions),
            allocations=allocations,
            seed=seed,
            device=device,
            cache_dir=cache_dir,
            on_progress=on_progress,
        )
    show(_table(found))
    for name, reason in found.failures.items():
        show(f"{name} did not score: {reason}")
    if png is not None:
        from mpsearch.report.evidence_plot import evidence_png
        from mpsearch.schemas.document import write_atomically

        show(f"wrote {write_atomically(png, evidence_png(found))}")
    if out is not None:
        show(f"wrote {found.save(out)}")
    if as_json:
        print_document(found)


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"fractions {text!r}: write numbers from 0 to 1 with commas, such as 0.3,0.5,0.7"
        ) from error


def _table(found: Comparison) -> Table:
    where = "held-out data" if found.held_out else "the calibration data"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"rank agreement with measured {found.loss_function}, and increase of "
        f"{found.judged_by or found.loss_function} at budgets on {where}",
    )
    for column in ("estimator", "seconds", "ρ single", "τ single", "ρ whole", "τ whole"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for fraction in found.fractions:
        table.add_column(f"{100 * fraction:.3g}%", justify="right")
    best = [min(row.losses[k] for row in found.rows) for k in range(len(found.fractions))]
    for row in found.rows:
        name = f"{row.estimator} ({row.chosen})" if row.chosen else row.estimator
        ranks = (row.single_spearman, row.single_kendall, row.whole_spearman, row.whole_kendall)
        table.add_row(
            name,
            f"{'≥ ' if row.resumed else ''}{row.seconds:.2f}",
            *("–" if value is None else f"{value:.2f}" for value in ranks),
            *(
                f"[bold]{loss:.4g}[/]" if loss == least else f"{loss:.4g}"
                for loss, least in zip(row.losses, best, strict=True)
            ),
        )
    return table
