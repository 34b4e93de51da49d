"""Whether costs add up: summed predictions beside the latency of whole models that are run."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mpsearch.budgets import format_amount
from mpsearch.errors import InputError, MismatchError
from mpsearch.formats import Option, parse_option
from mpsearch.hardware.graph_prices import TO_INT8, graph_prices, is_narrow
from mpsearch.hardware.interpolation import Estimate
from mpsearch.hardware.measure_runtime import runtime_conditions
from mpsearch.hardware.mixed_graph import mixed_graph
from mpsearch.hardware.onnx_graph import RuntimeGraph, runtime_graph
from mpsearch.hardware.rounds import FEWEST, Rounds
from mpsearch.hardware.runtime_session import RuntimeSession, least_disturbed, reference_session
from mpsearch.hardware.shapes import layer_keys
from mpsearch.hardware.table import Check, CostTable, to_base
from mpsearch.menu import parse_options
from mpsearch.models.layer import Layer
from mpsearch.models.layers import find_layers
from mpsearch.progress import OnProgress, Progress, ignore_progress
from mpsearch.schemas import Allocation

__all__ = [
    "Additivity",
    "BudgetMet",
    "budget_met",
    "check_additivity",
    "drift",
    "predicted_latency",
]

RESOURCE = "latency"
UNIFORM = "uniform "


@dataclass(frozen=True)
class Additivity:
    """What a comparison showed.

    Attributes:
        checks: One for every allocation.
        pace: How long the machine takes for a fixed matrix product now, over what it took when the
            table was measured. Nothing is corrected by it; far from 1, the machine has changed.
        unpriced: Kinds of operations without a row: computed inside others, or not measured.
    """

    checks: list[Check]
    pace: float
    unpriced: list[str]

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max(abs(check.error) for check in self.checks)


@dataclass(frozen=True)
class BudgetMet:
    """A latency that was measured beside the budget that its allocation was chosen for.

    Attributes:
        measured: Seconds of the whole model.
        limit: Seconds of the budget.
        tolerance: Relative error of such sums that the allocation states; 0 where it states none.
        drift: How long the machine takes now for models that were checked before, over what it
            took then; None where it is not known.
    """

    measured: float
    limit: float
    tolerance: float
    drift: float | None = None

    @property
    def verdict(self) -> str:
        """Where the measured latency lies."""
        return self._judged(self.measured)

    def _judged(self, seconds: float) -> str:
        if seconds <= self.limit:
            return "within the budget"
        within = seconds <= self.limit * (1 + self.tolerance)
        return "above the budget, within the tolerance" if within else "BEYOND the tolerance"

    def __str__(self) -> str:
        """Say it in one line."""
        measured, limit = (format_amount(each, "s") for each in (self.measured, self.limit))
        stated = f"± {self.tolerance:.1%}" if self.tolerance else "without a stated tolerance"
        said = f"{measured} measured, budget {limit} {stated}: {self.verdict}"
        if self.drift is None or self.measured <= self.limit * (1 + self.tolerance):
            return said
        before = self.measured / self.drift
        return (
            f"{said}. Models that were checked before take {self.drift:.3f}x what they took then; "
            f"at that pace it is {format_amount(before, 's')}, {self._judged(before)}"
        )


def drift(now: Sequence[Check], before: Sequence[Check]) -> float | None:
    """Compare how long the machine takes for the same models now and earlier.

    Args:
        now: Checks of now.
        before: Earlier checks, such as those in the table.

    Returns:
        The median ratio over uniform allocations, which are the same in every check; None where
        no model is in both.
    """
    known = {(each.model, each.allocation): each.measured for each in before}
    ratios = [
        each.measured / known[each.model, each.allocation]
        for each in now
        if each.allocation.startswith(UNIFORM) and (each.model, each.allocation) in known
    ]
    return statistics.median(ratios) if ratios else None


def budget_met(
    allocation: Allocation, check: Check, table: CostTable, pace: float | None = None
) -> BudgetMet | None:
    """Compare what an allocation's model took with the latency budget it was chosen for.

    Args:
        allocation: The allocation.
        check: The run of its model.
        table: The table that the check belongs to.
        pace: What `drift` says of the machine.

    Returns:
        The comparison; None where the allocation has no such budget.
    """
    use = allocation.budgets.get(check.resource)
    if use is None:
        return None
    measured, _ = to_base(check.measured, table.units[check.resource])
    return BudgetMet(measured, use.limit, use.tolerance or 0.0, pace)


def check_additivity(
    model: nn.Module,
    inputs: Tensor,
    table: CostTable,
    *,
    name: str,
    further: Mapping[str, Mapping[str, str]] | None = None,
    seed: int = 0,
    mixed: int = 3,
    rounds: Rounds | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Additivity:
    """Compare summed costs with whole models that are run in ONNX Runtime.

    Args:
        model: The model; unchanged afterwards.
        inputs: A batch that it accepts; its first input is repeated to the table's batch.
        table: A table that ONNX Runtime was measured with, under the conditions of now.
        name: What to call the model.
        further: Allocations to run beside each option alone and random ones: name -> layer ->
            option.
        seed: Of the random allocations.
        mixed: How many random allocations.
        rounds: How long to run; the table's threads when left out.
        on_progress: Called after every round.

    Returns:
        The comparison.

    Raises:
        InputError: The table has no prices for conversions, or other conditions.
    """
    if TO_INT8 not in table.ops:
        raise InputError(
            f"the table of {table.device} does not price what lies between layers; measure one "
            "with: mpsearch hardware measure MODEL --backend onnxruntime"
        )
    run = rounds or Rounds(threads=int(table.conditions.get("threads", "1")))
    now = runtime_conditions(run.threads)
    if now != table.conditions:
        changed = sorted(k for k in now if now[k] != table.conditions.get(k))
        raise InputError(
            f"the table was measured with another {', '.join(changed)}: "
            f"{ {k: table.conditions.get(k) for k in changed} } then, "
            f"{ {k: now[k] for k in changed} } now; measure again"
        )
    first = inputs[:1].expand(table.batch, *inputs.shape[1:]).clone()
    graph = runtime_graph(model, first)
    layers = {layer.name: layer for layer in find_layers(model, (first[:1], None)).layers}
    chosen = _chosen(graph, table, seed, mixed) | dict(further or {})
    parsed = {
        label: {layer: parse_option(option) for layer, option in choice.items()}
        for label, choice in chosen.items()
    }
    summed = {k: predicted_latency(graph, layers, table, choice) for k, choice in parsed.items()}
    whole, reference = _run(graph, parsed, run, on_progress)
    pace = reference / table.reference_seconds if table.reference_seconds else 1.0
    checks = [
        Check(
            model=name,
            allocation=label,
            predicted=summed[label] * 1e6,
            measured=whole[label] * 1e6,
        )
        for label in parsed
    ]
    return Additivity(checks, pace, sorted(graph_prices(graph, table, RESOURCE).unpriced))


def predicted_latency(
    graph: RuntimeGraph,
    layers: Mapping[str, Layer],
    table: CostTable,
    choice: Mapping[str, Option],
) -> float:
    """Sum the costs of an allocation: layers, what lies between them, conversions.

    Args:
        graph: The model's graph.
        layers: Its layers by name.
        table: The prices.
        choice: Layer -> option.

    Returns:
        Seconds.

    Raises:
        MismatchError: A layer has no option, or no price at its option.
    """
    own = []
    for layer in graph.layers:
        if layer not in choice:
            raise MismatchError(f"the allocation names no option for layer {layer}")
        option = choice[layer].name
        shape = layer_keys(layers[layer], table.batch)
        found = table.of_shape(layers[layer].kind, shape, option, RESOURCE)
        if not isinstance(found, Estimate):
            raise MismatchError(f"layer {layer} has no {RESOURCE} at {option}: {found}")
        own.append(found.value)
    narrow = {layer: is_narrow(choice[layer]) for layer in graph.layers}
    return math.fsum(own) + graph_prices(graph, table, RESOURCE).beside_layers(narrow)


def _chosen(
    graph: RuntimeGraph, table: CostTable, seed: int, mixed: int
) -> dict[str, dict[str, str]]:
    """Each option alone, and random allocations that were no part of the measurement."""
    options = [o.name for o in parse_options(table.options)]
    found = {f"{UNIFORM}{option}": dict.fromkeys(graph.layers, option) for option in options}
    draw = random.Random(seed)  # noqa: S311 - no secret
    for number in range(mixed if len(options) > 1 else 0):
        # Runs of like layers, as allocations have them, and single ones.
        stay = (0.5, 0.7, 0.9)[number % 3]
        current = draw.choice(options)
        choice = {}
        for layer in graph.layers:
            if draw.random() > stay:
                current = draw.choice([o for o in options if o != current])
            choice[layer] = current
        found[f"mixed {number + 1}"] = choice
    return found


def _run(
    graph: RuntimeGraph,
    allocations: Mapping[str, Mapping[str, Option]],
    rounds: Rounds,
    on_progress: OnProgress,
) -> tuple[dict[str, float], float]:
    sessions = {
        label: RuntimeSession(
            mixed_graph(graph, [x for x, option in choice.items() if is_narrow(option)]),
            rounds.threads,
            graph.example,
        )
        for label, choice in allocations.items()
    }
    reference = reference_session(rounds.threads)
    seconds: dict[str, list[float]] = {label: [] for label in sessions}
    pace: list[float] = []
    total = rounds.warm_up + rounds.rounds
    deadline = time.monotonic() + rounds.most_seconds
    for done in range(1, total + 1):
        for label, session in sessions.items():
            seconds[label].append(session.run())
        pace.append(reference.run())
        on_progress(Progress("check", done, total, f"rounds of {len(sessions)} models"))
        if done >= rounds.warm_up + FEWEST and time.monotonic() > deadline:
            break
    on_progress(Progress("check", total, total, f"rounds of {len(sessions)} models"))
    start = rounds.warm_up
    return {k: least_disturbed(v[start:]) for k, v in seconds.items()}, least_disturbed(
        pace[start:]
    )
