from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

import mpsearch as mp
from mpsearch.report.page import report_page
from mpsearch.report.plots import bits_png, frontier_png
from mpsearch.report.tables import (
    allocation_report,
    costs_table,
    frontier_table,
    profile_table,
    verification_table,
)
from mpsearch.schemas import DataRecord, Measurement, Refinement

PNG = b"\x89PNG\r\n\x1a\n"


def text_of(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def problem() -> tuple[mp.Profile, mp.Costs]:
    allowed = np.array([[True, True], [False, True]])
    profile = mp.Profile.from_arrays(
        [[0.5, 0.0], [np.nan, -0.25]],
        groups=["stem", "head"],
        options=["w2a8", "w8a8"],
        stderr=[[0.125, 0.0], [0.0, 0.0]],
        allowed=allowed,
    )
    costs = mp.Costs(
        groups=["stem", "head"],
        options=["w2a8", "w8a8"],
        values={"weight_memory": [[1000.0, 4000.0], [2000.0, 8000.0]]},
        units={"weight_memory": "B"},
        baseline={"weight_memory": 48000.0},
        fixed={"weight_memory": 640.0},
    )
    return profile, costs


@pytest.mark.parametrize(
    ("measured", "after", "words"),
    [
        (9, 0.25, "9 allocations run on the calibration data; loss 0.25 in place of 0.5"),
        (9, 0.5, "none measurably better"),
        (1, 0.5, "8 proposals gave nothing but the predicted best"),
    ],
)
def test_a_report_says_what_a_refinement_came_to(problem, measured, after, words) -> None:
    error = 0.0625 if after < 0.5 else None
    found = Refinement(
        proposals=8, measured=measured, loss_before=0.5, loss_after=after, standard_error=error
    )
    answer = mp.allocate(*problem, {"weight_memory": "0.25x"})
    answer = answer.model_copy(update={"refinement": found})
    assert words in text_of(allocation_report(answer, *problem))
    assert words in report_page(answer, *problem)


def test_a_report_shows_the_certificate_the_budget_and_what_was_not_verified(problem) -> None:
    profile, costs = problem
    answer = mp.allocate(profile, costs, {"weight_memory": "10 kB"})
    text = text_of(allocation_report(answer, profile, costs))
    assert "optimal" in text
    assert "10 kB (10 kB)" in text
    assert "9 kB" in text
    assert "90.0%" in text
    assert "+0.5 ± 0.1" in text
    assert "Nothing was verified" in text
    assert "640 B" in text


def test_an_answer_without_a_bound_is_not_called_optimal(problem) -> None:
    profile, costs = problem
    answer = mp.allocate(profile, costs, {"weight_memory": "10 kB"}).model_copy(
        update={"status": "feasible", "bound": None, "gap": None}
    )
    text = text_of(allocation_report(answer))
    assert "feasible" in text
    assert "no lower bound" in text
    assert "optimal" not in text


def test_options_that_are_not_offered_show_as_a_dash(problem) -> None:
    line = next(line for line in text_of(profile_table(problem[0])).splitlines() if "head" in line)
    assert line.split() == ["head", "–", "-0.25"]


@pytest.mark.parametrize(("share", "text"), [(True, "1250.00%"), (False, "12.5")])
def test_a_perplexity_is_not_written_as_a_percentage(share: bool, text: str) -> None:
    measured = Measurement(loss=2.5257, metric=12.5)
    verification = mp.Verification(
        data=DataRecord(name="text", fingerprint="0", inputs=3),
        held_out=True,
        loss_function="next_token",
        metric_name="perplexity",
        metric_is_share=share,
        float_model=measured,
        allocation=measured,
    )
    assert text in text_of(verification_table(verification)).split()


def test_costs_show_their_unit_and_the_float_model(problem) -> None:
    text = text_of(costs_table(problem[1]))
    assert "2 kB" in text
    assert "float model: 48 kB" in text


def test_a_frontier_is_listed_and_drawn(problem) -> None:
    profile, costs = problem
    curve = mp.frontier(profile, costs)
    assert [point.usage for point in curve.points] == [9000.0, 12000.0]
    assert "9 kB" in text_of(frontier_table(curve))
    answer = mp.allocate(profile, costs, {"weight_memory": "10 kB"})
    assert frontier_png(curve, answer).startswith(PNG)
    assert bits_png(answer).startswith(PNG)


def test_a_frontier_of_zero_losses_can_be_drawn(problem) -> None:
    _, costs = problem
    profile = mp.Profile.from_arrays(
        np.zeros((2, 2)), groups=["stem", "head"], options=["w2a8", "w8a8"]
    )
    assert frontier_png(mp.frontier(profile, costs)).startswith(PNG)
