"""`POST /v1/solve`: answers, refusals, limits, and processes that are killed and replaced."""

from __future__ import annotations

import itertools
import json
import math
import os
import pathlib
import signal
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mpsearch_api.http.running import MakeSite, Site

JSON = {"Content-Type": "application/json"}


def small(losses: list[list[float]], sizes: list[list[float]], limit: float) -> dict:
    return {
        "groups": [
            {
                "name": f"g{row}",
                "options": [
                    {"name": f"o{column}", "loss": loss, "costs": {"size": size}}
                    for column, (loss, size) in enumerate(zip(*menu, strict=True))
                ],
            }
            for row, menu in enumerate(zip(losses, sizes, strict=True))
        ],
        "limits": {"size": limit},
    }


tables = st.lists(
    st.lists(st.floats(0.0, 100.0).map(lambda x: round(x, 3)), min_size=3, max_size=3),
    min_size=4,
    max_size=4,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(losses=tables, sizes=tables, share=st.floats(0.0, 1.0))
def test_answers_are_those_of_trying_everything(
    solving_site: Site, losses: list[list[float]], sizes: list[list[float]], share: float
) -> None:
    limit = round(share * sum(map(max, sizes)), 3)
    answer = solving_site.client.post("/v1/solve?gap=0", json=small(losses, sizes, limit))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    feasible = [
        math.fsum(row[column] for row, column in zip(losses, choice, strict=True))
        for choice in itertools.product(range(3), repeat=4)
        if math.fsum(row[c] for row, c in zip(sizes, choice, strict=True)) <= limit
    ]
    if not feasible:
        assert found["status"] == "infeasible"
        assert found["minimum"]["size"] == pytest.approx(math.fsum(map(min, sizes)))
    else:
        assert found["status"] == "optimal"
        assert found["objective"] == pytest.approx(min(feasible), abs=1e-9)
        assert found["usage"]["size"] <= limit


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "cannot be read"),
        (b'{"groups": [], "limits": {"size": NaN}}', "NaN"),
        (b'{"groups": [], "limits": {"size": 1e999}}', "float64"),
        (b'{"groups": [], "groups": []}', "twice"),
        (b"[" * 100_000, "nested"),
        (b'{"limits": {"size": ' + b"9" * 5000 + b"}}", "digits"),
        (b"[]", "object"),
        (b'{"groups": []}', "limits"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"groups": [{"name": "\\ud800"}]}', "surrogate"),
    ],
)
def test_problems_that_cannot_be_read_are_refused_with_a_reason(
    solving_site: Site, body: bytes, words: str
) -> None:
    answer = solving_site.client.post("/v1/solve", content=body, headers=JSON)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("query", ["method=magic", "gap=1", "gap=-1", "time_limit=0", "seed=x"])
def test_settings_that_mean_nothing_are_refused(solving_site: Site, query: str) -> None:
    answer = solving_site.client.post(f"/v1/solve?{query}", json=small([[1.0]], [[1.0]], 2.0))
    assert answer.status_code == 422


def test_larger_problems_than_allowed_are_refused(make_site: MakeSite) -> None:
    with make_site(solving=True, solve_groups=3, solve_choices=10, body_bytes=4096) as site:
        groups = site.client.post("/v1/solve", json=small([[1.0]] * 4, [[1.0]] * 4, 9.0))
        options = site.client.post("/v1/solve", json=small([[1.0] * 11], [[1.0] * 11], 9.0))
        announced = site.client.post("/v1/solve", content=b" " * 5000, headers=JSON)
        chunked = site.client.post(
            "/v1/solve", content=(b" " * 1000 for _ in range(9)), headers=JSON
        )
        codes = [a.status_code for a in (groups, options, announced, chunked)]
        assert codes == [413, 413, 413, 413]


def hard(groups: int = 60) -> dict:
    """Equal ratios of loss and size with large odd sizes: nothing can be pruned early."""
    losses, sizes = [], []
    for row in range(groups):
        menu = [(row * 7919 + k * 104_729) % 9973 + 10_000.5 for k in range(8)]
        sizes.append(menu)
        losses.append([30_000.0 - size for size in menu])
    return small(losses, sizes, sum(sum(menu) / 8 for menu in sizes) + 0.25)


def test_a_solver_that_does_not_end_is_killed_and_replaced(make_site: MakeSite) -> None:
    with make_site(solving=True, solve_seconds=1.5, solve_processes=1) as site:
        easy = small([[1.0, 2.0]], [[2.0, 1.0]], 1.5)
        assert site.client.post("/v1/solve", json=easy).status_code == 200
        (process,) = site.service.solver.processes
        os.kill(process, signal.SIGSTOP)
        answer = site.client.post("/v1/solve", json=easy)
        assert answer.status_code == 504
        assert answer.json()["title"] == "Not solved in time"
        assert site.client.post("/v1/solve", json=easy).status_code == 200
        assert process not in site.service.solver.processes


def test_a_solver_that_dies_is_a_problem_and_is_replaced(make_site: MakeSite) -> None:
    with make_site(solving=True, solve_processes=1, solve_seconds=20.0) as site:
        easy = small([[1.0, 2.0]], [[2.0, 1.0]], 1.5)
        assert site.client.post("/v1/solve", json=easy).status_code == 200
        (process,) = site.service.solver.processes
        os.kill(process, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (process, signal.SIGKILL)).start()
        answer = site.client.post("/v1/solve", json=easy)
        assert answer.status_code == 503
        assert "ended with code" in answer.json()["detail"]
        assert site.client.post("/v1/solve", json=easy).status_code == 200


def test_a_time_limit_gives_the_best_answer_so_far(make_site: MakeSite) -> None:
    with make_site(solving=True) as site:
        answer = site.client.post("/v1/solve?time_limit=0.2&gap=0", json=hard())
        assert answer.status_code in {200, 504}
        if answer.status_code == 200:
            assert answer.json()["status"] in {"optimal", "feasible", "unknown"}


def test_solvers_end_with_the_application(make_site: MakeSite) -> None:
    with make_site(solving=True) as site:
        site.client.post("/v1/solve", json=small([[1.0]], [[1.0]], 2.0))
        processes = site.service.solver.processes
        assert processes
    deadline = time.monotonic() + 10
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_solvers_hold_no_secret(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSEARCH_DATABASE_URL", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.delenv("MPSEARCH_DATABASE_URL")
    with make_site(solving=True) as site:
        site.client.post("/v1/solve", json=small([[1.0]], [[1.0]], 2.0))
        for pid in site.service.solver.processes:
            with pathlib.Path(f"/proc/{pid}/environ").open("rb") as file:
                assert b"hush" not in file.read()


def test_the_answer_is_the_solution_document(solving_site: Site) -> None:
    answer = solving_site.client.post(
        "/v1/solve", json=small([[3.0, 1.0]], [[1.0, 5.0]], 2.0)
    ).json()
    assert answer["choice"] == {"g0": "o0"}
    assert answer["status"] == "optimal"
    assert answer["gap"] == 0
    assert json.dumps(answer)
