from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mpsearch.cli.solve import solve_command
from mpsearch.errors import DocumentError, InfeasibleError, InputError
from mpsearch_solvers import Problem, solve

PROBLEM = {
    "version": 1,
    "groups": [
        {
            "name": name,
            "options": [
                {"name": "w4a4", "loss": 0.4 / rank, "costs": {"size": 1.0, "latency": 0.2 * rank}},
                {"name": "w8a8", "loss": 0.1 / rank, "costs": {"size": 2.0, "latency": 0.3}},
            ],
        }
        for rank, name in enumerate(("conv1", "conv2", "fc"), start=1)
    ],
    "limits": {"size": 5.0},
}


@pytest.fixture
def problem_file(tmp_path):
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(PROBLEM))
    return str(path)


def run(*words, stdin=None):
    app = typer.Typer()
    app.command()(solve_command)
    return CliRunner().invoke(app, list(words), input=stdin)


def test_json_is_the_solution_alone_on_stdout(problem_file):
    result = run(problem_file, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    expected = solve(Problem.from_dict(PROBLEM)).to_dict()
    for name in ("status", "objective", "bound", "gap", "choice", "usage", "method"):
        assert document[name] == expected[name]


def test_people_read_the_choice_usage_and_certificate_on_stderr(problem_file):
    result = run(problem_file)
    assert result.exit_code == 0
    assert result.stdout == ""
    for words in ("conv1", "w8a8", "size", "optimal", "bound", "decomposition"):
        assert words in result.stderr


def test_the_problem_may_come_from_stdin():
    result = run("-", "--json", stdin=json.dumps(PROBLEM))
    assert json.loads(result.stdout)["status"] == "optimal"


@pytest.mark.parametrize("method", ["ilp", "dp", "brute_force", "greedy"])
def test_the_method_is_the_one_asked_for(problem_file, method):
    assert json.loads(run(problem_file, "-m", method, "--json").stdout)["method"] == method


def test_limits_and_goals_of_the_command_line_replace_those_of_the_file(problem_file):
    words = ("--limit", "size=3", "--goal", "latency", "--max-loss", "0.8", "--json")
    document = json.loads(run(problem_file, *words).stdout)
    assert document["usage"]["size"] == 3.0
    assert document["objective"] == document["usage"]["latency"]
    weighted = run(problem_file, "--goal", "loss=1,latency=0.5", "--json")
    assert json.loads(weighted.stdout)["status"] == "optimal"


def test_the_frontier_lists_certified_points(problem_file):
    document = json.loads(run(problem_file, "--frontier", "size", "--json").stdout)
    assert document["resource"] == "size"
    sizes = [point["usage"]["size"] for point in document["points"]]
    assert sizes == [3.0, 4.0, 5.0, 6.0]
    assert all(point["gap"] == 0.0 for point in document["points"])
    table = run(problem_file, "--frontier", "size", "--points", "2", "--unsupported")
    assert "objective" in table.stderr


def test_an_infeasible_problem_names_the_least_achievable(problem_file):
    result = run(problem_file, "--limit", "size=2", "--json")
    assert isinstance(result.exception, InfeasibleError)
    assert result.exception.minimum == {"size": 3.0}
    assert "size: least achievable 3; limit at most 2" in str(result.exception)
    assert json.loads(result.stdout)["status"] == "infeasible"


@pytest.mark.parametrize(
    "words",
    [
        ("--gap", "-1"),
        ("--time-limit", "0"),
        ("--method", "simplex"),
        ("--limit", "size"),
        ("--limit", "size=3MB"),
        ("--limit", "sizes=3"),
        ("--goal", "speed"),
        ("--goal", "loss=much"),
        ("--points", "3"),
        ("--frontier", "speed"),
    ],
)
def test_bad_usage_is_an_input_error(problem_file, words):
    result = run(problem_file, *words)
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize("text", ["{", "[]", '{"groups": [], "limits": {}}', '{"limits": {}}'])
def test_a_broken_file_is_a_document_error(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    assert isinstance(run(str(path)).exception, DocumentError)


def test_a_missing_file_is_an_input_error(tmp_path):
    assert isinstance(run(str(tmp_path / "none.json")).exception, InputError)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"version": 1', '"version": 1, "version": 1', "'version' is given twice"),
        ('"version": 1', '"version": ' + "1" * 5_000, "4300 digits"),
    ],
)
def test_a_document_that_python_reads_in_its_own_way_is_refused(problem_file, old, new, said):
    text = json.dumps(PROBLEM)
    assert old in text
    Path(problem_file).write_text(text.replace(old, new))
    result = run(problem_file)
    assert isinstance(result.exception, DocumentError)
    assert said in str(result.exception)


def test_a_byte_order_mark_before_the_document_is_no_part_of_it(problem_file):
    Path(problem_file).write_text(json.dumps(PROBLEM), encoding="utf-8-sig")
    assert run(problem_file).exit_code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_a_plain_error(problem_file):
    words = [sys.executable, "-c", "from mpsearch.cli.app import main; main()"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*words, "solve", problem_file, "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
