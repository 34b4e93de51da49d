"""Running an allocation on the real model, beside the float model and the baselines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import numpy as np

from mpsearch.baselines import Columns, Rule, Rules
from mpsearch.formats import parse_option
from mpsearch.losses import Loss, measure
from mpsearch.models.dataset import DataSet
from mpsearch.progress import OnProgress, Progress
from mpsearch.quantize import Quantizer
from mpsearch.schemas import (
    Allocation,
    Baseline,
    Costs,
    DataRecord,
    Measurement,
    Profile,
    Verification,
)

__all__ = ["AllocationRuns", "measure_allocation"]


class AllocationRuns:
    """Measures allocations on the verification data; each distinct one is run once."""

    def __init__(self, quantizer: Quantizer, data: DataSet, loss: Loss) -> None:
        """Start with nothing measured.

        Args:
            quantizer: Holds the float model and its calibrated ranges.
            data: Data; its held-out part is used where there is one.
            loss: Loss and metric.
        """
        self.data = data
        self.loss = loss
        self._quantizer = quantizer
        self._known: dict[tuple[tuple[str, str], ...], Measurement] = {}

    def __call__(self, layers: Mapping[str, str]) -> Measurement:
        """Measure one allocation.

        Args:
            layers: Layer -> option; layers that are not named stay in float.

        Returns:
            Loss and metric.
        """
        key = tuple(sorted(layers.items()))
        if key not in self._known:
            choice = {layer: parse_option(option) for layer, option in layers.items()}
            with self._quantizer.options(choice) as changed:
                batches = self.data.verification_batches()
                self._known[key] = measure(changed, batches, self.loss)
        return self._known[key]


def measure_allocation(
    run: AllocationRuns,
    allocation: Allocation,
    rules: tuple[Profile, Costs] | None,
    on_progress: OnProgress,
) -> Verification:
    """Measure an allocation, the float model, and the baselines within the same budgets.

    Args:
        run: Measures allocations on the model.
        allocation: What to verify.
        rules: Profile and costs to derive baselines from; None: no baselines.
        on_progress: Called after every measurement.

    Returns:
        What was measured.
    """
    started = time.perf_counter()
    proposals: list[Rule] = []
    if rules is not None and allocation.budgets:
        limits = {resource: use.limit for resource, use in allocation.budgets.items()}
        proposals = Rules(*rules, limits).all(allocation.seed)
    total = 2 + sum(len(rule.candidates) for rule in proposals)
    done = 2
    reference = run({})
    found = run(allocation.layers)
    on_progress(Progress("verify", done, total, "allocation"))
    baselines = []
    for rule in proposals:
        assert rules is not None
        results = []
        for columns in rule.candidates:
            layers = _layers(rules[0], columns)
            results.append((run(layers), layers))
            done += 1
            on_progress(Progress("verify", done, total, rule.name))
        baselines.append(_summary(rule, results))
    data = run.data
    shown = data.held_out_inputs if data.held_out_inputs is not None else data.inputs
    return Verification(
        data=DataRecord(name=data.name, fingerprint=data.fingerprint, inputs=len(shown)),
        held_out=data.verifies_on_held_out,
        loss_function=run.loss.name,
        metric_name=run.loss.metric_name,
        metric_is_share=run.loss.metric is not None,
        float_model=reference,
        allocation=found,
        baselines=baselines,
        seconds=time.perf_counter() - started,
    )


def _layers(profile: Profile, columns: Columns) -> dict[str, str]:
    return {
        layer: profile.options[column]
        for group, column in zip(profile.groups, columns, strict=True)
        for layer in profile.layers_of(group)
    }


def _summary(rule: Rule, results: list[tuple[Measurement, dict[str, str]]]) -> Baseline:
    if not results:
        return Baseline(name=rule.name, description=rule.description, exists=False)
    if rule.name == "random":
        metrics = [m.metric for m, _ in results if m.metric is not None]
        median = Measurement(
            loss=statistics.median(m.loss for m, _ in results),
            metric=statistics.median(metrics) if metrics else None,
        )
        return Baseline(
            name=rule.name, description=rule.description, exists=True, measurement=median
        )
    best = int(np.argmin([m.loss for m, _ in results]))
    measurement, layers = results[best]
    return Baseline(
        name=rule.name,
        description=rule.description,
        exists=True,
        measurement=measurement,
        layers=layers,
    )
