"""`mpsearch profile | price | frontier | verify`: the stages of a search one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpsearch.allocating import as_costs, as_profile, frontier
from mpsearch.cli import arguments as args
from mpsearch.cli.console import print_document, progress_bars, show
from mpsearch.cli.search import DEFAULT_MENU
from mpsearch.menu import Wishes
from mpsearch.report.tables import (
    costs_table,
    frontier_table,
    profile_table,
    verification_table,
)
from mpsearch.schemas import Allocation
from mpsearch.schemas.document import write_atomically

__all__ = ["frontier_command", "price_command", "profile_command", "verify_command"]

SavedProfile = Annotated[Path, typer.Option("--profile", help="Saved profile.")]
SavedCosts = Annotated[Path, typer.Option("--costs", help="Saved costs.")]


def profile_command(
    model: args.ModelArgument,
    data: args.DataOption,
    samples: args.SamplesOption = None,
    trusted: args.TrustedOption = False,
    options: args.OptionsOption = DEFAULT_MENU,
    estimator: args.EstimatorOption = "measured_loss",
    setting: args.SettingOption = [],  # noqa: B006 - typer reads the default, nothing changes it
    loss: args.LossOption = None,
    cache_dir: args.CacheOption = None,
    memory_limit: args.MemoryOption = None,
    groups_for: args.GroupsForOption = None,
    group: args.GroupOption = [],  # noqa: B006
    fix: args.FixOption = [],  # noqa: B006
    skip: args.SkipOption = [],  # noqa: B006
    seed: args.SeedOption = 0,
    device: args.DeviceOption = "cpu",
    out: args.OutOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Predict how much loss every layer costs at every option.

    mpsearch profile digits-resnet --data digits --estimator hessian_trace --out profile.json
    """
    most_bytes = args.memory_of(memory_limit)
    from mpsearch.cli.loading import load
    from mpsearch.pipeline import profile

    loaded = load(
        model,
        data,
        Wishes(group, args.fixes_of(fix), skip),
        groups_for=groups_for,
        samples=samples,
        seed=seed,
        trusted=trusted,
    )
    with progress_bars() as on_progress:
        found = profile(
            loaded.model,
            loaded.data,
            args.options_of(options),
            estimator,
            loss=loss,
            wishes=loaded.wishes,
            seed=seed,
            device=device,
            cache_dir=cache_dir,
            memory_limit=most_bytes,
            on_progress=on_progress,
            **args.settings_of(setting),
        )
    show(profile_table(found))
    if out is not None:
        show(f"wrote {found.save(out)}")
    if as_json:
        print_document(found)


def price_command(
    model: args.ModelArgument,
    data: args.DataOption,
    samples: args.SamplesOption = None,
    trusted: args.TrustedOption = False,
    options: args.OptionsOption = DEFAULT_MENU,
    hardware: args.HardwareOption = None,
    resources: args.ResourcesOption = None,
    batch: args.BatchOption = None,
    context: args.ContextOption = 1,
    groups_for: args.GroupsForOption = None,
    group: args.GroupOption = [],  # noqa: B006
    fix: args.FixOption = [],  # noqa: B006
    skip: args.SkipOption = [],  # noqa: B006
    out: args.OutOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Compute what every layer spends of every resource at every option.

    mpsearch price digits-resnet --data digits --options w4a8,w8a8 --out costs.json
    """
    from mpsearch.cli.loading import load
    from mpsearch.pipeline import price

    loaded = load(
        model,
        data,
        Wishes(group, args.fixes_of(fix), skip),
        groups_for=groups_for,
        samples=samples,
        trusted=trusted,
    )
    costs = price(
        loaded.model,
        loaded.data,
        args.options_of(options),
        hardware,
        resources=args.options_of(resources) if resources else None,
        batch=batch,
        context=context,
        wishes=loaded.wishes,
    )
    show(costs_table(costs))
    if out is not None:
        show(f"wrote {costs.save(out)}")
    if as_json:
        print_document(costs)


def frontier_command(
    profile: SavedProfile,
    costs: SavedCosts,
    resource: Annotated[
        str, typer.Option("--resource", help="Resource to trade loss against.")
    ] = "weight_memory",
    budget: args.BudgetsOption = [],  # noqa: B006
    points: Annotated[
        int | None,
        typer.Option("--points", help="Thin the curve to about so many points."),
    ] = None,
    unsupported: Annotated[
        bool,
        typer.Option("--unsupported", help="Also find the points between supported ones."),
    ] = False,
    out: args.OutOption = None,
    png: Annotated[Path | None, typer.Option("--png", help="Draw it here.")] = None,
    as_json: args.JsonOption = False,
) -> None:
    """Trace all Pareto-optimal allocations of saved scores, without a model.

    mpsearch frontier --profile out/profile.json --costs out/costs.json --png frontier.png
    """
    curve = frontier(
        as_profile(profile),
        as_costs(costs),
        resource,
        budget=args.budgets_of(budget) or None,
        points=points,
        unsupported=unsupported,
    )
    show(frontier_table(curve))
    if png is not None:
        from mpsearch.report.plots import frontier_png

        show(f"wrote {write_atomically(png, frontier_png(curve))}")
    if out is not None:
        show(f"wrote {curve.save(out)}")
    if as_json:
        print_document(curve)


def verify_command(
    model: args.ModelArgument,
    data: args.DataOption,
    allocation: Annotated[Path, typer.Option("--allocation", help="Saved allocation.")],
    samples: args.SamplesOption = None,
    seed: args.SeedOption = 0,
    trusted: args.TrustedOption = False,
    profile: args.ProfileOption = None,
    costs: args.CostsOption = None,
    loss: args.LossOption = None,
    device: args.DeviceOption = "cpu",
    out: args.OutOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Run a saved allocation on its model; with --profile and --costs beside baselines.

    mpsearch verify digits-resnet --data digits --allocation out/allocation.json
    """
    answer = Allocation.load(allocation)
    scores = as_profile(profile) if profile else None
    prices = as_costs(costs) if costs else None
    from mpsearch.cli.loading import load
    from mpsearch.pipeline import verify

    loaded = load(model, data, samples=samples, seed=seed, trusted=trusted)
    with progress_bars() as on_progress:
        found = verify(
            loaded.model,
            loaded.data,
            answer,
            profile=scores,
            costs=prices,
            loss=loss,
            device=device,
            on_progress=on_progress,
        )
    show(verification_table(found))
    answer = answer.model_copy(update={"verification": found})
    if out is not None:
        show(f"wrote {answer.save(out)}")
    if as_json:
        print_document(answer)
