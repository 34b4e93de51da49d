"""A whole search: profile, price, allocate, refine and verify, and what each stage produced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mpsearch.allocating import Monotone, allocate, check_budgets
from mpsearch.budgets import parse_budgets
from mpsearch.errors import InputError
from mpsearch.freed_memory import freed_memory_kept
from mpsearch.hardware.lookup import as_hardware
from mpsearch.hardware.pricing import ACTIVATION_MEMORY, EAGER_ACTIVATION_MEMORY
from mpsearch.hardware.resources import known_resources
from mpsearch.menu import Wishes
from mpsearch.models.fingerprint import check_model
from mpsearch.models.registry import ModelLike
from mpsearch.pipeline import DEFAULT_OPTIONS, NO_WISHES, HardwareLike, price, profile
from mpsearch.preparing import DataLike, LossLike, compared_by, loaded, quantizer_for
from mpsearch.progress import OnProgress, Progress, ignore_progress, with_time_left
from mpsearch.refining import PartLosses, proposals_wanted, refined_allocation
from mpsearch.schemas import Allocation, Costs, Profile
from mpsearch.sensitivity.protocol import Estimator
from mpsearch.smallest import Goal, smallest_allocation
from mpsearch.verification import AllocationRuns, measure_allocation

__all__ = ["Outcome", "resources_asked", "run_search", "search"]


@dataclass(frozen=True)
class Outcome:
    """Everything a search produced.

    Attributes:
        profile: The scores.
        costs: The prices.
        allocation: The answer, with its verification unless that was not wanted.
    """

    profile: Profile
    costs: Costs
    allocation: Allocation


def search(
    model: ModelLike,
    data: DataLike,
    options: Sequence[str] = DEFAULT_OPTIONS,
    budget: Mapping[str, str | float] | None = None,
    **keywords: Any,
) -> Allocation:
    """Profile, price, allocate and verify.

    Args:
        model: A module or the name of a bundled model. It is not changed.
        data: As in `profile`.
        options: Names of the options.
        budget: Resource -> amount, at least one.
        **keywords: As in `run_search`.

    Returns:
        The allocation, with its verification unless that was not wanted.
    """
    return run_search(model, data, options, budget or {}, **keywords).allocation


@freed_memory_kept()
def run_search(
    model: ModelLike,
    data: DataLike,
    options: Sequence[str],
    budget: Mapping[str, str | float],
    *,
    hardware: HardwareLike | None = None,
    batch: int | None = None,
    context: int = 1,
    estimator: str | Estimator = "measured_loss",
    loss: LossLike | None = None,
    wishes: Wishes = NO_WISHES,
    known_profile: Profile | None = None,
    known_costs: Costs | None = None,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = None,
    monotone: Monotone = "keep",
    goal: Goal | None = None,
    refine: int | None = None,
    verified: bool = True,
    seed: int = 0,
    device: str | None = None,
    on_progress: OnProgress = ignore_progress,
    **settings: Any,
) -> Outcome:
    """Profile, price, allocate and verify, and keep what each stage produced.

    Args:
        model: A module or the name of a bundled model. It is not changed.
        data: As in `profile`.
        options: Names of the options.
        budget: Resource -> amount, at least one.
        hardware: As in `price`.
        batch: As in `price`.
        context: As in `price`.
        estimator: As in `profile`.
        loss: As in `profile`.
        wishes: Layers to group, fix or skip.
        known_profile: A profile of this model to use instead of making one.
        known_costs: Costs of this model to use instead of computing them.
        method: As in `allocate`.
        gap: As in `allocate`.
        time_limit: As in `allocate`.
        monotone: As in `allocate`.
        goal: Find the least use of a resource within a measured drop, instead of the least loss.
        refine: How many allocations beside the predicted best to solve for perturbed scores and run
            on the calibration data, in search of a better one (`refining.refine`); None: 32 for
            scores of the estimator `auto`, else 0.
        verified: Whether to run the answer on the model.
        seed: Seed of everything random.
        device: As in `profile`.
        on_progress: Called after every step.
        **settings: Settings of the estimator named.

    Returns:
        Profile, costs and allocation.

    Raises:
        InputError: Both a goal and a refinement; any other bad input.
    """
    if budget or goal is None:
        parse_budgets(budget)
    proposals_wanted(refine, "")  # refuses before anything is scored
    if goal is not None and refine:
        raise InputError(
            "refine looks for less loss within fixed budgets, a goal for the least use of a "
            "resource: ask for one of them"
        )
    if goal is not None:
        goal.check_budget(budget)
    named, dataset = loaded(model, data, device)
    check_model(named, known_profile.model if known_profile else None, "profile")
    check_model(named, known_costs.model if known_costs else None, "cost table")
    # Prices first: they are cheap, and a budget that cannot be met is better known before scoring.
    costs = known_costs or price(
        named,
        dataset,
        options,
        hardware,
        resources=resources_asked(budget, goal, hardware),
        batch=batch,
        context=context,
        wishes=wishes,
        on_progress=on_progress,
    )
    if budget:
        check_budgets(budget, costs)
    scores = known_profile or profile(
        named,
        dataset,
        options,
        estimator,
        loss=loss,
        wishes=wishes,
        seed=seed,
        on_progress=on_progress,
        **settings,
    )
    solved = partial(
        allocate,
        scores,
        costs,
        method=method,
        gap=gap,
        time_limit=time_limit,
        seed=seed,
        monotone=monotone,
    )
    criterion, compared = compared_by(loss, named.module, dataset)
    quantizer = quantizer_for(named.module, scores, dataset)
    run = AllocationRuns(quantizer, compared, criterion)
    if goal is None:
        answer = solved(budget)
        proposals = proposals_wanted(refine, scores.estimator)
        if proposals:
            answer = refined_allocation(
                answer,
                (scores, costs),
                partial(allocate, costs=costs, budget=budget, seed=seed, monotone=monotone),
                PartLosses(quantizer, compared, criterion),
                proposals,
                independent=compared.verifies_on_held_out or not verified,
                on_progress=with_time_left(on_progress),
            )
    else:
        answer = smallest_allocation(
            goal, scores, costs, budget, solved, run, on_progress, monotone
        )
    on_progress(Progress("solve", 1, 1, answer.status))
    if verified:
        found = measure_allocation(run, answer, (scores, costs), on_progress)
        answer = answer.model_copy(update={"verification": found})
    return Outcome(scores, costs, answer)


def resources_asked(
    budget: Mapping[str, str | float], goal: Goal | None, hardware: HardwareLike | None
) -> list[str] | None:
    """Name the resources to price, those included that are priced only where a budget asks.

    Args:
        budget: Resource -> amount.
        goal: The goal, if it is not the least loss.
        hardware: As in `price`.

    Returns:
        What `price` takes as `resources`.
    """
    asked = [*budget, *([goal.resource] if goal else [])]
    by_name = set(known_resources()) - set(known_resources(default=True))
    extra = [name for name in asked if name in by_name | {EAGER_ACTIVATION_MEMORY}]
    if not extra:
        return None
    own = as_hardware(hardware).resources if hardware is not None else ()
    return [*known_resources(default=True), *extra, *own, *({ACTIVATION_MEMORY} & set(asked))]
