from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.budgets import format_amount, limit_of, parse_amount, parse_budget, parse_budgets
from mpsearch.errors import BudgetError, UnknownNameError
from mpsearch.schemas import Costs


@pytest.fixture
def costs() -> Costs:
    table = np.array([[1.0, 2.0, 8.0], [10.0, 20.0, 80.0]])
    return Costs(
        groups=["a", "b"],
        options=["w2", "w4", "float"],
        values={"weight_memory": table, "latency": table * 1e-3, "points": table},
        units={"weight_memory": "B", "latency": "s", "points": "pt"},
        baseline={"weight_memory": 100.0},
    )


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("weight_memory=64", 64.0),
        ("weight_memory<=64B", 64.0),
        ("weight_memory = 3 MB", 3e6),
        ("weight_memory=256KiB", 256 * 1024.0),
        ("weight_memory=1e-3GB", 1e6),
        ("weight_memory=0.25x", 25.0),
        ("weight_memory=50%", 11 + 0.5 * 11),
        ("weight_memory=100%", 22.0),
        ("latency=2.5ms", 2.5e-3),
        ("latency=12 µs", 12e-6),
        ("latency=12us", 12e-6),
        ("points=7pt", 7.0),
    ],
)
def test_a_budget_means_the_limit_it_says(costs: Costs, text: str, limit: float) -> None:
    assert limit_of(parse_budget(text), costs) == pytest.approx(limit, rel=1e-12)


def test_a_fraction_runs_between_quantized_allocations_and_ignores_float(costs: Costs) -> None:
    # cheapest 1 + 10, dearest without float 2 + 20
    assert limit_of(parse_amount("weight_memory", "25%"), costs) == pytest.approx(13.75)


def test_a_fraction_respects_what_groups_are_offered(costs: Costs) -> None:
    offered = np.array([[True, True, True], [False, True, False]])
    budget = parse_amount("weight_memory", "50%")
    assert limit_of(budget, costs, offered) == pytest.approx(20 + 1 + 0.5)


def test_a_group_offered_only_float_counts_at_float(costs: Costs) -> None:
    offered = np.array([[True, True, False], [False, False, True]])
    assert limit_of(parse_amount("weight_memory", "50%"), costs, offered) == pytest.approx(81.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "weight_memory",
        "=3MB",
        "weight_memory=",
        "weight_memory=MB",
        "weight_memory>=3MB",
        "weight_memory=1.2.3",
        "weight_memory=nan",
        "weight_memory=inf",
        "weight memory=3",
        "weight_memory=3 M B",
        "weight_memory=101%",
    ],
)
def test_what_is_not_a_budget_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(text)
    assert text.partition("=")[0].strip() in str(caught.value)


@pytest.mark.parametrize("text", ["weight_memory=0", "weight_memory=-1MB", "weight_memory=0x"])
def test_a_budget_must_be_positive(text: str) -> None:
    with pytest.raises(BudgetError, match="greater than zero"):
        parse_budget(text)


def test_unknown_units_and_resources_name_the_known_ones(costs: Costs) -> None:
    with pytest.raises(UnknownNameError, match="MiB"):
        limit_of(parse_budget("weight_memory=3 mib"), costs)
    with pytest.raises(UnknownNameError, match="weight_memory"):
        limit_of(parse_budget("weight_memori=3 MB"), costs)


def test_a_relative_budget_needs_a_float_baseline(costs: Costs) -> None:
    with pytest.raises(BudgetError, match="not known"):
        limit_of(parse_budget("latency=0.5x"), costs)


def test_a_mapping_takes_numbers_in_the_base_unit(costs: Costs) -> None:
    (budget,) = parse_budgets({"latency": 0.003})
    assert limit_of(budget, costs) == 0.003
    with pytest.raises(BudgetError, match="at least one"):
        parse_budgets({})


@given(st.floats(min_value=1e-9, max_value=1e15, allow_nan=False))
def test_any_positive_number_survives_the_text_form(amount: float) -> None:
    assert parse_amount("latency", amount).amount == amount


@given(st.text(max_size=30))
def test_arbitrary_text_is_read_or_refused_clearly(text: str) -> None:
    try:
        budget = parse_budget(text)
    except BudgetError:
        return
    assert math.isfinite(budget.amount)
    assert budget.amount > 0


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (37300.0, "B", "37.3 kB"),
        (12.0, "B", "12 B"),
        (1.24e9, "BOPs", "1.24 GBOPs"),
        (2.5e-3, "s", "2.5 ms"),
        (0.0, "s", "0 s"),
        (4.5, "bits", "4.5 bits"),
    ],
)
def test_amounts_are_written_with_prefixes(value: float, unit: str, text: str) -> None:
    assert format_amount(value, unit) == text
