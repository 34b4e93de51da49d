"""The nine ResNet-18 allocations that HAWQ-V3 published, from its own sensitivities and costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpsearch_solvers import Problem, solve

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (FOLDER / "resnet18_ilp_inputs.json").exists(),
    reason="the published inputs are not beside this checkout",
)


def published_problem(resource: str, part: float) -> tuple[Problem, list[str]]:
    inputs = json.loads((FOLDER / "resnet18_ilp_inputs.json").read_text())
    published = json.loads((FOLDER / "resnet18_published.json").read_text())["configs"]
    column = {
        name: np.array(inputs[name])
        for name in inputs
        if isinstance(inputs[name], list) and name not in ("layers", "tied_pairs")
    }
    trace = column["Hutchinson_trace"]
    loss = np.stack(
        [trace * column["delta_weights_4bit_square"], trace * column["delta_weights_8bit_square"]],
        axis=1,
    )
    size, bops = column["parameters"], column["bops"]
    cost = {
        "modelsize": np.stack([0.5 * size, size], axis=1),
        "bops": np.stack([bops / 64, bops / 16], axis=1),
        "latency": np.stack([column["latency_int4"], column["latency_int8"]], axis=1),
    }[resource]
    low, high = cost.sum(axis=0)
    names = inputs["layers"]
    problem = Problem.from_arrays(
        loss,
        {resource: cost},
        {resource: float(low + part * (high - low))},
        names=names,
        options=["4", "8"],
        ties=[[names[a], names[b]] for a, b in inputs["tied_pairs"]],
    )
    bits = published[f"bit_config_resnet18_{resource}_{part:g}"]["bits"]
    return problem, [str(bit) for bit in bits]


@pytest.mark.parametrize("method", ["decomposition", "ilp", "dp", "auto"])
@pytest.mark.parametrize("part", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("resource", ["modelsize", "bops", "latency"])
def test_the_published_bit_vector_is_the_answer(resource, part, method):
    problem, bits = published_problem(resource, part)
    found = solve(problem, method, gap=0)
    assert found.status == "optimal"
    assert list(found.choice.values()) == bits
