"""The stages on a live model: profile, price and verify (`searching` runs them all)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from mpsearch.allocating import (
    as_costs,
    as_profile,
    check_match,
)
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.hardware.lookup import Hardware, as_hardware
from mpsearch.hardware.pricing import price_survey
from mpsearch.menu import Wishes, make_menu
from mpsearch.models.fingerprint import check_model, record_of
from mpsearch.models.layers import find_layers
from mpsearch.models.registry import ModelLike, as_data, as_model, check_fit
from mpsearch.preparing import DataLike, LossLike, compared_by, loaded, quantizer_for
from mpsearch.progress import OnProgress, Progress, ignore_progress, with_time_left
from mpsearch.quantize import Quantizer
from mpsearch.ranges import activation_formats, extremes, known_ranges, resolved
from mpsearch.schemas import Allocation, Costs, DataRecord, Profile, Verification
from mpsearch.scoring import low_bit_warning, refuse_ties, sum_over_groups
from mpsearch.sensitivity import build
from mpsearch.sensitivity.memory import fitting
from mpsearch.sensitivity.pairwise import grouped_interactions
from mpsearch.sensitivity.profile_cache import profile_cache
from mpsearch.sensitivity.protocol import Estimator, ScoringTask
from mpsearch.verification import AllocationRuns, measure_allocation

__all__ = ["DEFAULT_OPTIONS", "NO_WISHES", "HardwareLike", "price", "profile", "verify"]

NO_WISHES = Wishes()
DEFAULT_OPTIONS = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8")

HardwareLike = str | Path | Hardware


@freed_memory_kept()
def profile(
    model: ModelLike,
    data: DataLike,
    options: Sequence[str] = DEFAULT_OPTIONS,
    estimator: str | Estimator = "measured_loss",
    *,
    loss: LossLike | None = None,
    wishes: Wishes = NO_WISHES,
    seed: int = 0,
    device: str | None = None,
    cache_dir: str | Path | None = None,
    executor: Executor | None = None,
    memory_limit: int | None = None,
    on_progress: OnProgress = ignore_progress,
    **settings: Any,
) -> Profile:
    """Predict the loss increase of every layer at every option.

    Args:
        model: A module or the name of a bundled model. It is not changed.
        data: Calibration data: a name, a DataSet, inputs, (inputs, targets), or a DataLoader.
        options: Names of the options to score.
        estimator: Name of an estimator, or an Estimator.
        loss: Name of a loss, or a function of output and target that returns the batch mean; None:
            cross-entropy where the data has targets, else the divergence from the float model.
        wishes: Layers to group, fix or skip.
        seed: Seed of everything random.
        device: Where to compute, such as `cuda`; None: where the model is.
        cache_dir: Folder for profiles and for finished parts of long measurements, by content of
            model, data, loss, estimator and options: a second run loads its profile from it, and an
            interrupted one resumes.
        executor: Where independent parts of long measurements run; the scores do not depend on it.
        memory_limit: Most bytes to hold beside the model, its quantized weights and the data;
            batches are made as small as that needs. None: batches as the data has them.
        on_progress: Called after every step.
        **settings: Settings of the estimator named.

    Returns:
        The profile, float64, groups x options, in units of the loss.

    Raises:
        InputError: Options repeat or cannot be told apart by the estimator; any other bad input.
        ModelError: The model has non-finite weights, or the scores came out non-finite.
    """
    started = time.perf_counter()
    on_progress = with_time_left(on_progress)
    scorer = build(estimator, settings) if isinstance(estimator, str) else estimator
    named, dataset = loaded(model, data, device)
    module = named.module
    fingerprint = dataset.fingerprint
    criterion, dataset = compared_by(loss, module, dataset)
    on_progress(Progress("load", 1, 1, named.name))
    cache = profile_cache(
        cache_dir, named, dataset, criterion, estimator, settings, options, wishes, seed
    )
    known = cache.load()
    if known is not None:
        on_progress(Progress("profile", 1, 1, "known profile"))
        return known
    notes: tuple[str, ...] = ()
    if memory_limit is not None:
        dataset, notes = fitting(module, dataset, memory_limit, scorer.held)
    survey = find_layers(module, next(dataset.batches()))
    menu = make_menu([layer.name for layer in survey.layers], options, wishes)
    refuse_ties(scorer, menu.options)
    layers = [layer for layer in survey.layers if layer.name not in menu.skipped]
    # Ranges are of use to options that round activations alone; others save the forward passes.
    formats = activation_formats(menu.options)
    names = [layer.name for layer in layers]
    ranges = known_ranges(module, names, dataset.batches(), formats) if formats else {}
    task = ScoringTask(
        model=module,
        layers=layers,
        options=menu.options,
        data=dataset,
        loss=criterion,
        quantizer=Quantizer(module, ranges),
        seed=seed,
        on_progress=on_progress,
        ranges=ranges,
        cache_dir=None if cache_dir is None else Path(cache_dir),
        executor=executor,
        memory_limit=memory_limit,
    )
    scores = scorer.score(task)
    loss_table, stderr = sum_over_groups(scores, task, menu)
    inside, between = grouped_interactions(scores, task, menu) or (0.0, None)
    found = Profile(
        groups=list(menu.groups),
        options=menu.names,
        loss=loss_table + inside,
        interactions=between,
        stderr=stderr,
        allowed=menu.mask,
        members=menu.members,
        estimator=scorer.name,
        settings=settings,
        statistics=scores.statistics,
        activation_ranges=extremes(ranges),
        resolved_ranges=resolved(ranges),
        loss_function=criterion.name,
        float_loss=scores.float_loss,
        seed=seed,
        model=record_of(named),
        data=DataRecord(name=dataset.name, fingerprint=fingerprint, inputs=len(dataset)),
        warnings=[
            *named.notes,
            *dataset.notes,
            *survey.notes,
            *notes,
            *scores.warnings,
            *low_bit_warning(scorer, menu.options),
        ],
        seconds=time.perf_counter() - started,
    )
    return cache.keep(found)


def price(
    model: ModelLike,
    data: DataLike,
    options: Sequence[str] = DEFAULT_OPTIONS,
    hardware: HardwareLike | None = None,
    *,
    resources: Sequence[str] | None = None,
    batch: int | None = None,
    context: int = 1,
    wishes: Wishes = NO_WISHES,
    on_progress: OnProgress = ignore_progress,
) -> Costs:
    """Compute what every layer spends of every resource at every option.

    Args:
        model: A module or the name of a bundled model. It is not changed.
        data: Data whose first input gives the shapes, as `profile` takes it.
        options: Names of the options to price.
        hardware: Name of a shipped device, path of a device or cost table, or a Device or
            CostTable; options that it cannot run are not offered. None: no device.
        resources: Names of resources; by default all that need no device but the variants, and all
            that the hardware prices.
        batch: Inputs processed together, for activation memory, latency and energy; None: one, or
            what the cost table was measured with.
        context: Tokens kept in `kv_cache_memory`.
        wishes: Layers to group, fix or skip; the same as for the profile.
        on_progress: Called after every step.

    Returns:
        The costs, with those of the float model as `baseline` and the rest of the model's
        parameters, stored in float32, as `fixed`.
    """
    found = None if hardware is None else as_hardware(hardware)
    named = as_model(model)
    dataset = as_data(data, model=named)
    if named.limits is not None:
        check_fit(named, dataset)
    first = next(dataset.batches())
    survey = find_layers(named.module, first)
    menu = make_menu([layer.name for layer in survey.layers], options, wishes)
    priced: list[str] = []

    def on_resource(name: str) -> None:
        priced.append(name)
        on_progress(Progress("price", len(priced), len(priced), ", ".join(priced)))

    costs = price_survey(
        named.module,
        first[0],
        survey,
        menu,
        hardware=found,
        resources=resources,
        batch=batch,
        context=context,
        on_resource=on_resource,
    )
    return costs.model_copy(update={"model": record_of(named)})


@freed_memory_kept()
def verify(
    model: ModelLike,
    data: DataLike,
    allocation: Allocation | str | Path,
    *,
    profile: Profile | str | Path | None = None,
    costs: Costs | str | Path | None = None,
    loss: LossLike | None = None,
    device: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Verification:
    """Run an allocation on the real model and measure it, beside baselines at equal budget.

    Args:
        model: The float model. It is not changed.
        data: Data; its held-out part is used where there is one.
        allocation: The allocation, or the path of a saved one.
        profile: Profile it came from, for a loaded allocation; with `costs`, baselines are
            measured too. An allocation that was just made knows its own.
        costs: Costs it came from.
        loss: As in `profile`.
        device: As in `profile`.
        on_progress: Called after every measurement.

    Returns:
        Measured loss and metric of the float model, the allocation and the baselines.

    Raises:
        MismatchError: Allocation, profile or costs belong to another model.
    """
    answer = allocation if isinstance(allocation, Allocation) else Allocation.load(allocation)
    named, dataset = loaded(model, data, device)
    check_model(named, answer.model, "allocation")
    rules = answer.origin
    if profile is not None and costs is not None:
        rules = as_profile(profile), as_costs(costs)
        check_match(*rules)
        check_model(named, rules[0].model, "profile")
    criterion, compared = compared_by(loss, named.module, dataset)
    run = AllocationRuns(quantizer_for(named.module, answer, dataset), compared, criterion)
    return measure_allocation(run, answer, rules, on_progress)
