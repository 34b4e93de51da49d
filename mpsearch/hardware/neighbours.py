"""Putting what lies between layers into costs: operations without weights, and conversions."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from torch import Tensor, nn

from mpsearch.errors import DependencyError, ModelError
from mpsearch.formats import parse_option
from mpsearch.hardware.graph_prices import TO_INT8, GraphPrices, graph_prices, is_narrow
from mpsearch.hardware.onnx_graph import runtime_graph
from mpsearch.hardware.table import CostTable
from mpsearch.menu import Menu
from mpsearch.schemas import Conversion, Costs

__all__ = ["TO_INT8", "with_graph"]


def with_graph(
    costs: Costs, table: CostTable, module: nn.Module, inputs: Tensor, menu: Menu
) -> Costs:
    """Add what the model's graph costs beside its layers.

    Operations without weights are added to the group of the layer that they belong to, at its
    option. Conversions become costs of pairs of groups. Layers that are not allocated are float.

    Args:
        costs: Prices of the layers alone.
        table: The table they come from; prices conversions.
        module: The model.
        inputs: One batch of the table's size.
        menu: Groups and options.

    Returns:
        The full costs; as they were, with a warning, where the graph cannot be made.
    """
    resources = [name for name in table.resources if name in costs.values]
    if not resources:
        return costs
    try:
        graph = runtime_graph(module, inputs)
    except (DependencyError, ModelError) as error:
        warning = f"what lies between layers has no price in {', '.join(resources)}: {error}"
        return costs.model_copy(update={"warnings": [*costs.warnings, warning]})
    for resource in resources:
        prices = graph_prices(graph, table, resource)
        costs = _added(costs, resource, prices, menu)
    return costs


def _added(costs: Costs, resource: str, prices: GraphPrices, menu: Menu) -> Costs:
    group_of = {layer: group for group, members in menu.groups.items() for layer in members}
    row_of = {group: row for row, group in enumerate(costs.groups)}
    narrow = np.array([is_narrow(parse_option(option)) for option in costs.options])
    values = costs.values[resource].copy()
    baseline = costs.baseline.get(resource)

    def add(layer: str, at_float: float, at_int8: float) -> None:
        values[row_of[group_of[layer]]] += np.where(narrow, at_int8, at_float)

    constant = 0.0
    for layer, (at_float, at_int8) in prices.attached.items():
        if layer in group_of:
            add(layer, at_float, at_int8)
        else:
            constant += at_float
        if baseline is not None:
            baseline += at_float
    # What is spent whatever is chosen goes to the first group, so that sums are of the whole model.
    values[0] += constant
    pairs: dict[tuple[str, str, bool], float] = defaultdict(float)
    for edge in prices.edges:
        producer, consumer = group_of.get(edge.producer), group_of.get(edge.consumer)
        if producer is None and consumer is not None:
            add(edge.consumer, 0.0, edge.to_int8)
        elif consumer is None and producer is not None:
            add(edge.producer, 0.0, edge.to_float)
        elif producer is not None and consumer is not None and producer != consumer:
            pairs[producer, consumer, True] += edge.to_int8
            pairs[producer, consumer, False] += edge.to_float
    wide = [o for o, is_int8 in zip(costs.options, narrow, strict=True) if not is_int8]
    int8 = [o for o, is_int8 in zip(costs.options, narrow, strict=True) if is_int8]
    conversions = [
        Conversion(
            groups=(producer, consumer),
            first=wide if entering else int8,
            second=int8 if entering else wide,
            cost=cost,
        )
        for (producer, consumer, entering), cost in pairs.items()
        if wide and int8 and cost > 0
    ]
    update = {
        "values": costs.values | {resource: values},
        "conversions": costs.conversions | ({resource: conversions} if conversions else {}),
        "baseline": costs.baseline | ({} if baseline is None else {resource: baseline}),
    }
    return Costs.model_validate(costs.model_copy(update=update).model_dump())
