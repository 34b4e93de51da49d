from __future__ import annotations

import json

import numpy as np
import pytest

from mpsearch.errors import DocumentError
from mpsearch.schemas import Costs

CONTENT = {
    "groups": ["a", "b"],
    "options": ["w4", "w8"],
    "values": {"latency": [[1.0, 2.0], [None, 4.0]]},
    "units": {"latency": "s", "memory": "B"},
    "peaks": {
        "memory": [
            {"name": "first", "base": 1.0, "cost": {"a": [1.0, 2.0]}},
            {"name": "second", "cost": {"a": [0.5, 1.0], "b": [1.0, 2.0]}},
        ]
    },
    "unavailable": {"a": {"w8": "no kernel"}},
}


def costs(**changes) -> Costs:
    return Costs.parse(json.dumps(CONTENT | changes), "costs")


def test_use_is_a_sum_or_the_largest_step() -> None:
    found = costs()
    assert found.usage("latency", np.array([0, 1])) == 5.0
    assert np.isnan(found.usage("latency", np.array([0, 0])))
    assert found.usage("memory", np.array([0, 0])) == 2.0
    assert found.usage("memory", np.array([0, 1])) == 2.5
    assert found.usage("memory", np.array([1, 0])) == 3.0


def test_what_is_offered_is_what_runs_and_has_a_price_where_one_is_needed() -> None:
    found = costs()
    assert found.offered().tolist() == [[True, False], [True, True]]
    assert found.offered(["memory"]).tolist() == [[True, False], [True, True]]
    assert found.offered(["latency"]).tolist() == [[True, False], [False, True]]
    assert found.extreme("latency") == found.extreme("latency", least=False) == 5.0
    assert (found.extreme("memory"), found.extreme("memory", least=False)) == (2.0, 2.5)


def test_costs_survive_saving(tmp_path) -> None:
    found = costs()
    again = Costs.load(found.save(tmp_path / "c.json"))
    assert again.model_dump_json() == found.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"latency": [[1.0, 2.0]]}}, r"shape \(1, 2\)"),
        ({"units": {"latency": "s"}}, "units has no entry for 'memory'"),
        ({"peaks": {"memory": []}}, "no steps"),
        ({"peaks": {"memory": [{"name": "x", "cost": {"c": [1, 2]}}]}}, "'c' is no group"),
        ({"peaks": {"memory": [{"name": "x", "cost": {"a": [1]}}]}}, "not one price"),
        ({"peaks": {"memory": [{"name": "x"}] * 2}}, "repeated"),
        ({"unavailable": {"a": {"w2": "none"}}}, "no such group or option"),
        ({"origins": {"latency": [["measured"]]}}, "not a table of groups x options"),
    ],
)
def test_broken_costs_say_what_is_wrong(changes, message) -> None:
    with pytest.raises(DocumentError, match=message):
        costs(**changes)
