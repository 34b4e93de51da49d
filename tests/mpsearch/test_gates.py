from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpsearch.errors import GateError, InputError
from mpsearch.gates import MEASURED, NAMES, check_gates, parse_gate
from mpsearch.schemas import Allocation, Baseline, BudgetUse, Measurement, Verification
from mpsearch.schemas.profile import DataRecord


def verification(metric: float | None = 0.96, *, share: bool = True) -> Verification:
    return Verification(
        data=DataRecord(name="digits", fingerprint="0", inputs=10),
        held_out=True,
        loss_function="cross_entropy",
        metric_name="accuracy" if share else "psnr",
        metric_is_share=share,
        float_model=Measurement(loss=0.5, metric=None if metric is None else 0.98),
        allocation=Measurement(loss=0.75, metric=metric),
        baselines=[
            Baseline(name="uniform", description="", exists=False),
            Baseline(name="head", description="", exists=True, measurement=Measurement(loss=1.5)),
            Baseline(name="tail", description="", exists=True, measurement=Measurement(loss=1.25)),
        ],
    )


def allocation(**changes: object) -> Allocation:
    latency = BudgetUse(requested="3 ms", limit=3e-3, usage=2.4e-3, unit="s", least=1e-3)
    fields = {
        "layers": {"a": "w4a8"},
        "groups": {"a": "w4a8"},
        "status": "feasible",
        "objective": 0.2,
        "bound": 0.19,
        "gap": 0.05,
        "predicted_loss": 0.21,
        "budgets": {"latency": latency},
        "costs": {"latency": 2.4e-3, "weight_memory": 1500.0},
        "units": {"latency": "s", "weight_memory": "B"},
        "method": "auto",
        "solver": "",
        "seconds": 0.1,
        "estimator": "given",
        "verification": verification(),
    }
    return Allocation(**{**fields, **changes})


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("accuracy_drop > 0.01", True),
        ("accuracy_drop>1%", True),
        ("accuracy_drop > 2.5%", False),
        ("metric_drop >= 0.03", False),
        ("metric < 97%", True),
        ("float_metric == 0.98", True),
        ("loss_increase > 0.2", True),
        ("loss_increase > 0.25", False),
        ("loss > best_baseline_loss", False),
        ("best_baseline_loss == 1.25", True),
        ("float_loss != 0.5", False),
        ("gap > 1e-6", True),
        ("bound <= 0.19", True),
        ("objective < predicted_loss", True),
        ("status != optimal", True),
        ("feasible == status", True),
        ("status == optimal", False),
        ("usage.latency > 2 ms", True),
        ("usage.latency > 2.5ms", False),
        ("usage.latency > 0.002", True),
        ("usage.weight_memory >= 1.5kB", True),
        ("1.4KiB < usage.weight_memory", True),
        ("share.latency > 79%", True),
        ("share.latency > 0.81", False),
        ("usage.latency > 2ms and gap > 0.1", False),
        ("usage.latency > 2ms or gap > 0.1", True),
        ("gap > 0.1 or gap > 0.2 and gap > 0 or gap < 0.06", True),
        ("not (gap > 0.1 or status == optimal)", True),
        ("not not gap > 0.01", True),
        ("gap > -1", True),
    ],
)
def test_a_gate_says_what_it_says(text: str, holds: bool) -> None:
    assert parse_gate(text).holds(allocation()) is holds


def test_a_gate_that_holds_is_an_error_with_exit_code_5_and_its_values() -> None:
    gates = [parse_gate("accuracy_drop > 1%"), parse_gate("usage.latency > 9ms")]
    with pytest.raises(GateError, match=r"accuracy_drop > 1% \(accuracy_drop = 0.02\)$") as caught:
        check_gates(gates, allocation())
    assert caught.value.exit_code == 5


def test_values_are_shown_in_readable_units() -> None:
    gate = parse_gate("usage.latency > 2ms and status != optimal")
    assert gate.explained(allocation()).endswith("(usage.latency = 2.4 ms, status = feasible)")


def test_no_gate_holds_and_nothing_happens() -> None:
    check_gates([parse_gate("gap > 0.5")], allocation())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acuracy_drop > 1%", "did you mean accuracy_drop"),
        ("use.latency > 1ms", "unknown figure in --fail-if 'use.latency'"),
        ("gap", "a comparison is missing|ends too early"),
        ("gap > ", "ends too early"),
        ("", "ends too early"),
        ("gap = 1", "compare with =="),
        ("gap > bound gap", "'gap' is out of place"),
        ("(gap > 1", "not closed"),
        ("gap > 1)", r"'\)' is out of place"),
        ("1 > 2", "compares nothing"),
        ("status > optimal", "write status==optimal"),
        ("status == 1", "write status==optimal"),
        ("gap == optimal", "write status==optimal"),
        ("gap > 3ms", "beside usage"),
        ("gap > 1; import os", "cannot be read"),
        ("__import__ > 1", "unknown figure"),
        ("metric.__class__ > 1", "unknown figure"),
        ("and > 1", "a name or a number is missing"),
        ("(" * 60 + "gap > 1" + ")" * 60, "nested too deeply"),
        ("gap > 1e999", "beyond the range"),
        ("gap > 1" + " or gap > 1" * 200, "longer than"),
    ],
)
def test_what_is_no_gate_is_refused_before_anything_runs(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_gate(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("accuracy_drop > 1%", {"verification": None}, "not run on the model"),
        ("accuracy_drop > 1%", {"verification": verification(None)}, "no targets"),
        ("accuracy_drop > 1%", {"verification": verification(30.0, share=False)}, "metric_drop"),
        ("bound > 1", {"bound": None}, "nothing was proven"),
        ("gap > 1", {"gap": None}, "nothing was proven"),
        ("usage.latencies > 1", {}, "did you mean latency"),
        ("share.weight_memory > 1", {}, "no budget"),
        ("usage.latency > 1kB", {}, "unknown unit of latency 'kB'"),
        # Neither half of an `or` may hide what the other cannot tell.
        ("gap > 0 or accuracy_drop > 1%", {"verification": None}, "not run on the model"),
        ("gap > 1 and accuracy_drop > 1%", {"verification": None}, "not run on the model"),
    ],
)
def test_a_gate_without_its_figure_is_an_error_and_never_passes(
    text: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse_gate(text).holds(allocation(**changes))


def test_a_drop_of_a_metric_that_is_no_share_has_its_own_name() -> None:
    found = allocation(verification=verification(0.9, share=False))
    assert parse_gate("metric_drop > 0.07").holds(found)


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_measured_names_are_refused_at_once_when_nothing_will_be_measured(name: str) -> None:
    with pytest.raises(InputError, match="nothing will be run"):
        parse_gate(f"gap > 0.1 or {name} > 0", verified=False)


def test_every_name_in_the_list_can_be_used() -> None:
    for name in NAMES:
        text = name.replace("RESOURCE", "latency")
        right = "optimal" if name == "status" else "0"
        parse_gate(f"{text} != {right}").explained(allocation())


FACTS = {"gap > 0.01": True, "gap > 0.1": False, "status == feasible": True, "bound > 1": False}
EXPRESSIONS = st.recursive(
    st.sampled_from(sorted(FACTS)),
    lambda inner: st.one_of(
        inner.map("({})".format),
        inner.map("not ({})".format),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map("".join),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_and_or_not_and_brackets_mean_what_they_mean_in_python(text: str) -> None:
    python = text
    for fact, value in FACTS.items():
        python = python.replace(fact, str(value))
    assert parse_gate(text).holds(allocation()) is eval(python)


@given(st.text(alphabet="gap stu.><=!()0123456789%eandornt-+", max_size=40))
def test_any_text_is_a_gate_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        parse_gate(text).holds(allocation())


def test_comparisons_agree_with_numbers() -> None:
    for sign, value in itertools.product(("<", "<=", ">", ">=", "==", "!="), (0.04, 0.05, 0.06)):
        expected = eval(f"0.05 {sign} {value}")
        assert parse_gate(f"gap {sign} {value}").holds(allocation()) is expected
