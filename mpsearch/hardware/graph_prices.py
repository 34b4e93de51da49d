"""What a graph costs beyond its layers: operations without weights, and conversions on its edges.

A latency table of a runtime prices three things: kernels of layers by shape, operations without
weights by the size of what they leave (at the option of the layer they belong to), and
conversions (`to_int8`, `to_float`) by the size of the tensor that is converted. The cost of an
allocation is then a sum over layers plus a sum over pairs of neighbours whose arithmetic differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mpsearch.errors import InputError
from mpsearch.formats import Option, parse_option
from mpsearch.hardware.device import arithmetic_of
from mpsearch.hardware.interpolation import Estimate
from mpsearch.hardware.onnx_graph import RuntimeGraph
from mpsearch.hardware.table import CostTable

__all__ = [
    "FLOAT",
    "NARROW_OPTION",
    "TO_FLOAT",
    "TO_INT8",
    "Edge",
    "GraphPrices",
    "graph_prices",
    "is_narrow",
]

TO_INT8, TO_FLOAT = "to_int8", "to_float"
FLOAT = parse_option("float")
NARROW_OPTION = parse_option("w8a8")


def is_narrow(option: Option) -> bool:
    """Tell whether a layer at an option is computed in int8.

    Args:
        option: The option.

    Returns:
        True for int8 weights with int8 activations.
    """
    return (arithmetic_of(option.weight), arithmetic_of(option.activation)) == ("int8", "int8")


@dataclass(frozen=True)
class Edge:
    """Two layers, one of which reads what the other made.

    Attributes:
        producer: The layer that made the tensor.
        consumer: The layer in whose arithmetic it is read.
        to_int8: Cost where the producer is float and the consumer int8.
        to_float: Cost the other way round.
    """

    producer: str
    consumer: str
    to_int8: float
    to_float: float


@dataclass
class GraphPrices:
    """Costs of a graph beside those of its layers' own kernels, in the base unit.

    Attributes:
        attached: Layer -> cost of what belongs to it, when it is float and when it is int8.
        edges: Conversions between layers.
        unpriced: Kinds of operations that the table has no row for: fused, or never measured.
    """

    attached: dict[str, list[float]] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    unpriced: set[str] = field(default_factory=set)

    def beside_layers(self, narrow: Mapping[str, bool]) -> float:
        """Price an allocation, without the kernels of its layers.

        Args:
            narrow: Layer -> whether it is int8.

        Returns:
            The cost.
        """
        own = [costs[narrow[layer]] for layer, costs in self.attached.items()]
        return math.fsum([*own, *self._converted(narrow)])

    def _converted(self, narrow: Mapping[str, bool]) -> Iterator[float]:
        for edge in self.edges:
            if narrow[edge.producer] != narrow[edge.consumer]:
                yield edge.to_int8 if narrow[edge.consumer] else edge.to_float


def graph_prices(graph: RuntimeGraph, table: CostTable, resource: str) -> GraphPrices:
    """Price what a graph holds beside its layers.

    Args:
        graph: The graph.
        table: A table with rows for conversions.
        resource: The resource, usually latency.

    Returns:
        The prices.

    Raises:
        InputError: The graph has no layer.
    """
    if not graph.layers:
        raise InputError("the graph has no layers to price")
    prices = GraphPrices({layer: [0.0, 0.0] for layer in graph.layers})
    first = graph.layers[0]
    for operation in graph.operations:
        if operation.layer is None:
            for narrow, option in enumerate((FLOAT, NARROW_OPTION)):
                at = option if operation.owner else FLOAT
                cost = _by_size(table, operation.kind, operation.size.values, at, resource)
                if cost is None:
                    prices.unpriced.add(operation.kind)
                prices.attached[operation.owner or first][narrow] += cost or 0.0
        for source in operation.inputs:
            _add_edge(prices, graph, source, operation.owner, table, resource)
    _add_edge(prices, graph, graph.operations[-1].number, None, table, resource)
    return prices


def _add_edge(
    prices: GraphPrices,
    graph: RuntimeGraph,
    source: int,
    reader: str | None,
    table: CostTable,
    resource: str,
) -> None:
    maker, values = graph.owner_of(source), graph.facts_of(source).values
    entering = _by_size(table, TO_INT8, values, NARROW_OPTION, resource) or 0.0
    leaving = _by_size(table, TO_FLOAT, values, NARROW_OPTION, resource) or 0.0
    if maker is None and reader is not None:
        prices.attached[reader][1] += entering  # what is always float enters an int8 layer
    elif maker is not None and reader is None:
        prices.attached[maker][1] += leaving
    elif maker is not None and reader is not None and maker != reader:
        prices.edges.append(Edge(maker, reader, entering, leaving))


def _by_size(
    table: CostTable, kind: str, values: int, option: Option, resource: str
) -> float | None:
    found = table.of_shape(kind, {"values": values}, option.name, resource)
    return found.value if isinstance(found, Estimate) else None
