"""`mpsearch search`: the whole pipeline, or a new budget for saved scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpsearch.allocating import Monotone, allocate, as_costs, as_profile, frontier
from mpsearch.cli import arguments as args
from mpsearch.cli.console import print_document, progress_bars, show
from mpsearch.cli.export import menu_for_target
from mpsearch.errors import InputError
from mpsearch.gates import check_gates, parse_gate
from mpsearch.menu import Wishes
from mpsearch.report.tables import allocation_report
from mpsearch.schemas import Allocation, Costs, Profile
from mpsearch.schemas.document import write_atomically

if TYPE_CHECKING:
    from mpsearch.smallest import Goal

__all__ = ["search_command"]

DEFAULT_MENU = "w2a8,w3a8,w4a8,w6a8,w8a8"


_OF_SCORING = {
    "options": "--options",
    "estimator": "--estimator",
    "setting": "--set",
    "group": "--group",
    "groups_for": "--groups-for",
    "target": "--target",
    "fix": "--fix",
    "skip": "--skip",
    "cache_dir": "--cache-dir",
    "memory_limit": "--memory-limit",
}
_OF_THE_MODEL = {"data": "--data", "loss": "--loss", "samples": "--samples", "device": "--device"}


def search_command(
    context_of_call: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help=f"{args.MODEL_HELP} Not needed with --profile and --costs."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help=args.DATA_HELP)] = None,
    samples: args.SamplesOption = None,
    trusted: args.TrustedOption = False,
    options: args.OptionsOption = DEFAULT_MENU,
    budget: args.BudgetsOption = [],  # noqa: B006 - typer reads the default, nothing changes it
    estimator: args.EstimatorOption = "measured_loss",
    setting: args.SettingOption = [],  # noqa: B006
    loss: args.LossOption = None,
    cache_dir: args.CacheOption = None,
    memory_limit: args.MemoryOption = None,
    hardware: args.HardwareOption = None,
    batch: args.BatchOption = None,
    context: args.ContextOption = 1,
    groups_for: args.GroupsForOption = None,
    target: args.TargetOption = None,
    group: args.GroupOption = [],  # noqa: B006
    fix: args.FixOption = [],  # noqa: B006
    skip: args.SkipOption = [],  # noqa: B006
    profile: args.ProfileOption = None,
    costs: args.CostsOption = None,
    solver: args.MethodOption = "auto",
    gap: args.GapOption = 1e-6,
    time_limit: args.TimeLimitOption = None,
    goal: args.GoalOption = None,
    max_drop: args.MaxDropOption = None,
    refine: args.RefineOption = None,
    clamp: args.ClampOption = False,
    no_verify: args.NoVerifyOption = False,
    seed: args.SeedOption = 0,
    device: args.DeviceOption = "cpu",
    fail_if: args.FailIfOption = [],  # noqa: B006
    out: args.OutOption = None,
    as_json: args.JsonOption = False,
) -> None:
    """Find the option of every layer that loses least within budgets, prove it and measure it.

    With a model: score its layers, price them, solve, and run the answer beside uniform,
    head-high, tail-high and random allocations of the same budget.

        mpsearch search digits-resnet --data digits --budget weight_memory=0.12x --out out

    Without one: solve saved scores for another budget, in milliseconds; nothing is measured then.

        mpsearch search --profile out/profile.json --costs out/costs.json --budget bops=3%

    A cost table that names the layers prices saved scores too, given as --costs or --hardware.
    """
    budgets = args.budgets_of(budget)
    most_bytes = args.memory_of(memory_limit)
    wanted = _goal(goal, max_drop)
    if profile is not None:
        _refuse_ignored(context_of_call, _OF_SCORING, "the saved --profile already says")
        if model is None:
            _refuse_ignored(context_of_call, _OF_THE_MODEL, "no MODEL is given, so nothing uses")
    _check_folder(out)
    verified = model is not None and not no_verify
    gates = [parse_gate(text, verified=verified) for text in fail_if]
    known_profile = as_profile(profile) if profile else None
    known_costs = _costs(costs, hardware, known_profile, has_model=model is not None)
    monotone: Monotone = "clamp" if clamp else "keep"
    if model is None:
        if known_profile is None or known_costs is None:
            raise InputError(
                "give a MODEL with --data, or both --profile and --costs (a cost table may stand "
                "for the costs)"
            )
        if wanted is not None:
            raise InputError("--goal measures allocations, so it needs a MODEL with --data")
        if refine:
            raise InputError("--refine measures allocations, so it needs a MODEL with --data")
        answer = allocate(
            known_profile,
            known_costs,
            budgets,
            method=solver,
            gap=gap,
            time_limit=time_limit,
            seed=seed,
            monotone=monotone,
        )
    else:
        if data is None:
            raise InputError("give the data set to score and verify on: --data NAME")
        from mpsearch.cli.loading import load
        from mpsearch.searching import run_search

        offered = args.options_of(options)
        if target is not None:
            source = context_of_call.get_parameter_source("options")
            given = source is not None and source.name == "COMMANDLINE"
            offered, left_out = menu_for_target(target, offered, given=given)
            if left_out:
                show(f"left out, {target} cannot express them: {', '.join(left_out)}")
        loaded = load(
            model,
            data,
            Wishes(group, args.fixes_of(fix), skip),
            groups_for=groups_for,
            target=target,
            samples=samples,
            seed=seed,
            trusted=trusted,
        )
        with progress_bars() as on_progress:
            outcome = run_search(
                loaded.model,
                loaded.data,
                offered,
                budgets,
                hardware=hardware,
                batch=batch,
                context=context,
                estimator=estimator,
                loss=loss,
                wishes=loaded.wishes,
                known_profile=known_profile,
                known_costs=known_costs,
                method=solver,
                gap=gap,
                time_limit=time_limit,
                monotone=monotone,
                goal=wanted,
                refine=refine,
                verified=not no_verify,
                seed=seed,
                device=device,
                cache_dir=cache_dir,
                memory_limit=most_bytes,
                on_progress=on_progress,
                **args.settings_of(setting),
            )
        known_profile, known_costs = outcome.profile, outcome.costs
        answer = outcome.allocation
    show(allocation_report(answer, known_profile, known_costs))
    if out is not None:
        _write(out, answer, known_profile, known_costs)
    if as_json:
        print_document(answer)
    check_gates(gates, answer)


def _costs(
    costs: Path | None, hardware: str | None, profile: Profile | None, *, has_model: bool
) -> Costs | None:
    """Load saved costs, or price a saved profile by a cost table that names its layers."""
    from mpsearch.hardware.lookup import as_hardware, price_profile
    from mpsearch.hardware.table import CostTable

    if costs is not None and not CostTable.is_one(costs):
        return as_costs(costs)
    if costs is None and (has_model or hardware is None):
        return None
    if profile is None:
        raise InputError("a cost table prices a saved --profile, or a MODEL with --data")
    found = CostTable.read(costs) if costs is not None else as_hardware(hardware or "")
    if not isinstance(found, CostTable):
        raise InputError(
            f"--hardware {hardware} needs the shapes of the layers: give a MODEL with --data"
        )
    return price_profile(profile, found)


def _refuse_ignored(call: typer.Context, flags: Mapping[str, str], why: str) -> None:
    """Refuse flags that could not act, rather than ignore what the caller asked for."""
    given = []
    for name, flag in flags.items():
        source = call.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.append(flag)
    if given:
        raise InputError(f"{why} {', '.join(given)}: leave that out, or make a new profile")


def _goal(goal: str | None, max_drop: float | None) -> Goal | None:
    if goal is None:
        if max_drop is not None:
            raise InputError("--max-drop belongs to --goal min:RESOURCE")
        return None
    from mpsearch.smallest import Goal

    return Goal.parse(goal, max_drop)


def _check_folder(out: Path | None) -> None:
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")


def _write(out: Path, answer: Allocation, profile: Profile, costs: Costs) -> None:
    from mpsearch.report.plots import bits_png, frontier_png

    resource, *others = answer.budgets
    rest: dict[str, str | float] = {name: answer.budgets[name].limit for name in others}
    curve = frontier(profile, costs, resource, budget=rest, monotone=answer.monotone)
    # Everything is made before anything is written, so that a failure leaves no half a folder.
    contents: Mapping[str, bytes] = {
        "allocation.json": answer.model_dump_json(indent=1).encode(),
        "profile.json": profile.model_dump_json(indent=1).encode(),
        "costs.json": costs.model_dump_json(indent=1).encode(),
        "frontier.json": curve.model_dump_json(indent=1).encode(),
        "frontier.png": frontier_png(curve, answer),
        "bits.png": bits_png(answer),
    }
    for name, content in contents.items():
        write_atomically(out / name, content)
    show(f"wrote {', '.join(contents)} to {out}")
