"""The job itself: load, price, profile, solve, verify, report. Runs in the job's own process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from mpsearch.allocating import check_budgets, frontier
from mpsearch.budgets import parse_budgets
from mpsearch.errors import InputError
from mpsearch.hardware.device import device
from mpsearch.hardware.lookup import Hardware, as_hardware
from mpsearch.menu import Wishes
from mpsearch.models.dataset import DataSet
from mpsearch.models.groups import propose_groups
from mpsearch.models.named import NamedModel
from mpsearch.models.registry import as_data, as_model, check_fit
from mpsearch.models.specs import SpecPolicy
from mpsearch.pipeline import price, profile
from mpsearch.preparing import loaded
from mpsearch.report.plots import frontier_png
from mpsearch.schemas import Allocation, Costs, Frontier, FrontierPoint, Profile
from mpsearch.schemas.jobs import JobRequest
from mpsearch.searching import resources_asked, run_search
from mpsearch.smallest import Goal
from mpsearch_api.execution.artifacts import write_artifacts
from mpsearch_api.execution.assigning import scoring_memory_of
from mpsearch_api.execution.child import MADE
from mpsearch_api.execution.outcome import Made
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.profile_cache import Content, DocumentCache
from mpsearch_api.execution.telling import Tell, Teller

__all__ = ["prepare", "run_job"]


@dataclass(frozen=True)
class _Loaded:
    """What a job works on."""

    named: NamedModel
    data: DataSet
    wishes: Wishes
    hardware: Hardware | None
    executor: Executor | None


def prepare() -> None:
    """Do ahead of the first fork what every job would do again: find fonts, draw once."""
    answer = FrontierPoint(
        usage=1.0, predicted_loss=1.0, bound=None, gap=None, status="feasible", groups={}
    )
    frontier_png(Frontier(resource="weight_memory", unit="B", points=[answer]))


def run_job(assignment: Assignment, tell: Tell, executor: Executor | None = None) -> Sequence[Made]:
    """Run the search that an assignment asks for.

    Args:
        assignment: What to run.
        tell: Takes updates.
        executor: Where parts of the profile run; None: here, one after the other.

    Returns:
        The files made.
    """
    request = assignment.claim.request
    torch.set_num_threads(request.execution.cpus)
    teller = Teller(tell)
    if request.budget or request.goal is None:
        parse_budgets(request.budget)  # what cannot be read is said before anything is loaded
    goal = Goal.parse(request.goal, request.max_drop) if request.goal is not None else None
    found = _load(assignment, teller, executor)
    content = Content(found.named, found.data, request, found.wishes)
    cache = DocumentCache(assignment.cache)
    costs = _price(found, content, cache, teller, goal)
    if request.budget:
        check_budgets(request.budget, costs)
    scores = _profile(found, content, cache, teller, assignment.cache)
    answer = _solve(found, request, scores, costs, goal, teller)
    curve = _frontier(answer, scores, costs, teller)
    made = write_artifacts(assignment.folder / MADE, answer, scores, costs, curve)
    teller.progress("report", 1.0)
    return made


def _load(assignment: Assignment, teller: Teller, executor: Executor | None) -> _Loaded:
    request = assignment.claim.request
    teller.progress("load", 0.0, request.model)
    policy = SpecPolicy(
        files=assignment.files,
        trusted=assignment.trusted,
        allow_downloads=assignment.downloads and not assignment.trusted,
    )
    named = as_model(assignment.model, policy)
    teller.progress("load", 0.5, request.data)
    data = as_data(assignment.data, policy, model=named, samples=request.samples, seed=request.seed)
    named, data = loaded(named, data, "cuda" if request.execution.gpus else None)
    check_fit(named, data)
    proposed: Sequence[Sequence[str]] = ()
    if request.groups_for is not None:
        proposed = propose_groups(named.module, next(data.batches()), request.groups_for)
    wishes = Wishes(request.groups, request.fix, request.skip, proposed)
    hardware = _hardware(assignment.hardware)
    teller.progress("load", 1.0, f"{named.name}, {data.name}")
    return _Loaded(named, data, wishes, hardware, executor)


def _hardware(hardware: str | Path | None) -> Hardware | None:
    """Find the hardware; text is only ever the name of a shipped device, never a path."""
    if hardware is None:
        return None
    return as_hardware(hardware) if isinstance(hardware, Path) else device(hardware)


def _price(
    found: _Loaded, content: Content, cache: DocumentCache, teller: Teller, goal: Goal | None
) -> Costs:
    request = content.request
    resources = resources_asked(request.budget, goal, found.hardware)
    told = found.hardware.model_dump_json() if found.hardware is not None else None
    key = content.costs_key(told, resources)
    costs = cache.load(Costs, key)
    if costs is not None:
        teller.progress("price", 1.0, "priced before", cached=True)
        return costs
    teller.progress("price", 0.0)
    costs = price(
        found.named,
        found.data,
        request.options,
        found.hardware,
        resources=resources,
        batch=request.batch,
        context=request.context,
        wishes=found.wishes,
    )
    cache.save(costs, key)
    teller.progress("price", 1.0, ", ".join(costs.units))
    return costs


def _profile(
    found: _Loaded, content: Content, cache: DocumentCache, teller: Teller, folder: Path
) -> Profile:
    request = content.request
    key = content.profile_key()
    scores = cache.load(Profile, key)
    if scores is not None:
        teller.progress("profile", 1.0, "scored before", cached=True)
    else:
        teller.progress("profile", 0.0, request.estimator)
        scores = profile(
            found.named,
            found.data,
            request.options,
            request.estimator,
            loss=request.loss,
            wishes=found.wishes,
            seed=request.seed,
            cache_dir=folder,
            executor=found.executor,
            memory_limit=scoring_memory_of(request),
            on_progress=lambda told: teller(told) if told.stage == "profile" else None,
            **_settings(request),
        )
        cache.save(scores, key)
        teller.progress("profile", 1.0, f"{scores.seconds:.1f} s")
    teller.partial(
        "profile",
        float_loss=scores.float_loss,
        loss_function=scores.loss_function,
        estimator=scores.estimator,
        groups=len(scores.groups),
        options=len(scores.options),
        scores=int(scores.offered.sum()),
    )
    return scores


def _settings(request: JobRequest) -> dict[str, Any]:
    """Give the estimator's settings, none of which may pass for an argument of `profile`."""
    for name in request.settings:
        if name in signature(profile).parameters:
            raise InputError(f"{request.estimator} has no setting {name!r}; see /v1/estimators")
    return dict(request.settings)


def _solve(
    found: _Loaded,
    request: JobRequest,
    scores: Profile,
    costs: Costs,
    goal: Goal | None,
    teller: Teller,
) -> Allocation:
    teller.progress("solve", 0.0, request.solver.method)
    answer = run_search(
        found.named,
        found.data,
        request.options,
        request.budget,
        known_profile=scores,
        known_costs=costs,
        loss=request.loss,
        method=request.solver.method,
        gap=request.solver.gap,
        time_limit=request.solver.time_limit,
        monotone=request.monotone,
        goal=goal,
        refine=request.refine,
        verified=request.verify,
        seed=request.seed,
        on_progress=teller,
    ).allocation
    teller.partial(
        "solve",
        status=answer.status,
        predicted_loss=answer.predicted_loss,
        bound=answer.bound,
        gap=answer.gap,
        method=answer.method,
    )
    measured = answer.verification
    if measured is not None:
        teller.partial(
            "verify",
            metric_name=measured.metric_name,
            float_loss=measured.float_model.loss,
            float_metric=measured.float_model.metric,
            loss=measured.allocation.loss,
            metric=measured.allocation.metric,
        )
    return answer


def _frontier(answer: Allocation, scores: Profile, costs: Costs, teller: Teller) -> Frontier:
    teller.progress("report", 0.0, "frontier")
    resource, *others = answer.budgets
    rest: dict[str, str | float] = {name: answer.budgets[name].limit for name in others}
    curve = frontier(scores, costs, resource, budget=rest or None, monotone=answer.monotone)
    teller.partial("report", frontier_points=len(curve.points), resource=resource)
    teller.progress("report", 0.5, "files")
    return curve
