from __future__ import annotations

import copy
import itertools
import json
import math

import numpy as np
import pytest
from instances import random_problem

from mpsearch_solvers import Interactions, Problem, ProblemError, solve

DOCUMENT = {
    "version": 1,
    "groups": [
        {
            "name": "conv1",
            "options": [
                {"name": "w4a4", "loss": 0.0123, "costs": {"size": 0.018, "tops": 2}},
                {"name": "w8a8", "loss": 0.0001, "costs": {"size": 0.036, "tops": 1}},
            ],
        },
        {
            "name": "fc",
            "options": [
                {"name": "w2a8", "loss": 0.5, "costs": {"size": 0.01, "tops": 3}},
                {"name": "w4a4", "loss": 0.1, "costs": {"size": 0.02, "tops": 2}},
                {"name": "w8a8", "loss": 0.0, "costs": {"size": 0.04, "tops": 1}},
            ],
        },
        {
            "name": "head",
            "options": [{"name": "float", "loss": 0, "costs": {"size": 0, "tops": 0}}],
        },
    ],
    "limits": {"size": 0.06, "tops": {"min": 3}},
    "fixed": {"head": "float"},
    "forbidden": [["fc", "w2a8"]],
    "ties": [["conv1", "fc"]],
    "goal": {"minimize": "loss", "max_loss": 5},
    "rows": {"memory": [{"step": "a", "base": 1, "costs": {"conv1": {"w4a4": 1, "w8a8": 2}}}]},
}


def edited(*path, value):
    """The document with one value replaced (or removed, for Ellipsis)."""
    document = copy.deepcopy(DOCUMENT)
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


def test_a_document_survives_the_round_trip_through_json():
    problem = Problem.from_dict(DOCUMENT)
    again = Problem.from_dict(json.loads(json.dumps(problem.to_dict())))
    assert again.to_dict() == problem.to_dict()
    assert solve(again, "brute_force").choice == solve(problem, "brute_force").choice


def test_only_groups_and_limits_are_required():
    document = {"groups": [{"name": "a", "options": [{"name": "x", "loss": 1}]}], "limits": {}}
    assert solve(Problem.from_dict(document)).objective == 1.0


def test_interactions_survive_the_round_trip():
    document = edited("ties", value=...)
    del document["goal"]
    document["interactions"] = [
        {"groups": ["conv1", "fc"], "options": ["w4a4", "w8a8"], "loss": 0.25}
    ]
    problem = Problem.from_dict(document)
    assert problem.to_dict()["interactions"] == document["interactions"]


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (edited("groups", value=...), "groups"),
        (edited("limits", value=...), "limits"),
        (edited("groups", value=[]), "groups"),
        (edited("groups", value={"a": 1}), "groups"),
        (edited("version", value=2), "version"),
        (edited("version", value=True), "version"),
        (edited("budget", value=3), "budget"),
        (edited("groups", 0, value="conv1"), "groups[0]"),
        (edited("groups", 0, "name", value=7), "groups[0].name"),
        (edited("groups", 1, "name", value="conv1"), "groups[1].name"),
        (edited("groups", 0, "extra", value=1), "groups[0].extra"),
        (edited("groups", 1, "options", value=[]), "groups[1].options"),
        (edited("groups", 1, "options", 2, value=5), "groups[1].options[2]"),
        (edited("groups", 1, "options", 2, "name", value="w4a4"), "groups[1].options[2].name"),
        (edited("groups", 1, "options", 2, "name", value=None), "groups[1].options[2].name"),
        (edited("groups", 1, "options", 0, "loss", value=...), "groups[1].options[0].loss"),
        (edited("groups", 1, "options", 0, "loss", value="1"), "groups[1].options[0].loss"),
        (edited("groups", 1, "options", 0, "loss", value=True), "groups[1].options[0].loss"),
        (edited("groups", 1, "options", 0, "loss", value=math.nan), "groups[1].options[0].loss"),
        (edited("groups", 1, "options", 0, "loss", value=10**400), "groups[1].options[0].loss"),
        (edited("groups", 1, "options", 0, "speed", value=1), "groups[1].options[0].speed"),
        (edited("groups", 1, "options", 0, "costs", value=[1]), "groups[1].options[0].costs"),
        (
            edited("groups", 1, "options", 0, "costs", "size", value=math.inf),
            "groups[1].options[0].costs.size",
        ),
        (
            edited("groups", 1, "options", 0, "costs", "size", value="3 MB"),
            "groups[1].options[0].costs.size",
        ),
        (
            edited("groups", 1, "options", 1, "costs", "size", value=...),
            "groups[1].options[1].costs.size",
        ),
        (edited("limits", value=[1]), "limits"),
        (edited("limits", "size", value="0.25x"), "limits.size"),
        (edited("limits", "size", value=math.nan), "limits.size"),
        (edited("limits", "size", value={}), "limits.size"),
        (edited("limits", "size", value={"most": 1}), "limits.size"),
        (edited("limits", "size", value={"min": 2, "max": 1}), "limits.size"),
        (edited("limits", "sizes", value=1), "limits.sizes"),
        (edited("limits", "memory", value={"min": 1}), "limits.memory.min"),
        (edited("fixed", "fd", value="w4a4"), "fixed.fd"),
        (edited("fixed", "fc", value="w3a3"), "fixed.fc"),
        (edited("fixed", value=[]), "fixed"),
        (edited("forbidden", 0, value=["fc"]), "forbidden[0]"),
        (edited("forbidden", 0, value=["fc", "w9"]), "forbidden[0]"),
        (edited("ties", 0, value=["conv1", "nope"]), "ties[0]"),
        (edited("goal", value="loss"), "goal"),
        (edited("goal", "minimise", value="loss"), "goal.minimise"),
        (edited("goal", "minimize", value="speed"), "goal.minimize"),
        (edited("goal", "minimize", value={"loss": 0}), "goal.minimize"),
        (edited("goal", "minimize", value={"loss": 1, "speed": 1}), "goal.minimize.speed"),
        (edited("goal", "minimize", value={"loss": 1, "memory": 1}), "goal.minimize.memory"),
        (edited("goal", "max_loss", value="low"), "goal.max_loss"),
        (edited("rows", value=[1]), "rows"),
        (edited("rows", "memory", value=[]), "rows.memory"),
        (edited("rows", "memory", 0, "base", value=math.inf), "rows.memory[0].base"),
        (edited("rows", "memory", 0, "costs", "xx", value={}), "rows.memory[0].costs.xx"),
        (
            edited("rows", "memory", 0, "costs", "conv1", "w9", value=1),
            "rows.memory[0].costs.conv1.w9",
        ),
        (edited("rows", "size", value=[{"costs": {}}]), "rows.size"),
        (edited("interactions", value=[{"groups": ["conv1"]}]), "interactions[0]"),
        ([], ""),
    ],
)
def test_a_bad_value_is_refused_with_its_path(document, path):
    with pytest.raises(ProblemError) as caught:
        Problem.from_dict(document)
    assert caught.value.path == path
    assert isinstance(caught.value, ValueError)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ProblemError, match="did you mean conv1"):
        Problem.from_dict(edited("fixed", "conv2", value="w4a4"))


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"loss": [1, 2]}, "loss"),
        ({"loss": [[1, "x"]]}, "loss"),
        ({"loss": [[1, math.nan]]}, "groups[0].options[1].loss"),
        ({"loss": [[1, 2]], "costs": {"s": [[1]]}}, "costs.s"),
        ({"loss": [[1, 2]], "costs": {"loss": [[1, 2]]}}, "costs.loss"),
        ({"loss": [[1, 2]], "allowed": [[1, 0]]}, "allowed"),
        ({"loss": [[1, 2]], "allowed": [[False, False]]}, "groups[0].options"),
        ({"loss": [[1, 2]], "names": ["a", "b"]}, "names"),
        ({"loss": [[1, 2]], "options": ["a", "a"]}, "options"),
        ({"loss": [[1, 2]], "options": [["a"]]}, "options[0]"),
        ({"loss": [[1, 2]], "rows": {"m": [[1, 2]]}}, "rows.m"),
    ],
)
def test_bad_arrays_are_refused_with_the_argument(arguments, path):
    with pytest.raises(ProblemError) as caught:
        Problem.from_arrays(**arguments)
    assert caught.value.path == path


def test_masked_entries_may_hold_anything():
    problem = Problem.from_arrays(
        [[1.0, math.nan], [math.inf, 2.0]],
        {"s": [[1.0, math.nan], [math.nan, 1.0]]},
        {"s": 2.0},
        allowed=[[True, False], [False, True]],
    )
    assert solve(problem).indices.tolist() == [0, 1]


def test_fixing_a_forbidden_option_says_which_group_has_nothing_left():
    document = edited("fixed", "fc", value="w2a8")
    with pytest.raises(ProblemError, match="'fc' nothing to choose"):
        solve(Problem.from_dict(document))


def test_ties_without_a_common_option_are_refused():
    document = edited("ties", value=[["conv1", "head"]])
    with pytest.raises(ProblemError, match="'conv1', 'head'"):
        solve(Problem.from_dict(document))


def test_ragged_random_problems_survive_the_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = random_problem(rng, 5, 4, 2, ragged=True)
        again = Problem.from_dict(problem.to_dict())
        first, second = solve(problem, "brute_force"), solve(again, "brute_force")
        assert first.status == second.status
        assert first.choice == second.choice


@pytest.mark.parametrize("loss", [[["1", "2"]], [[None, 2.0]], [[True, False]], [[1j, 2.0]]])
def test_arrays_of_anything_but_numbers_are_refused(loss):
    with pytest.raises(ProblemError, match=r"^loss: .*give numbers"):
        Problem.from_arrays(loss)


@pytest.mark.parametrize("value", [1e308, -1e308])
def test_numbers_whose_sums_leave_float64_are_refused_with_their_path(value):
    with pytest.raises(ProblemError, match=r"^groups\[1\]\.options\[0\]\.costs\.size: .*unit"):
        Problem.from_arrays([[1.0], [1.0]], {"size": [[1.0], [value]]}, {"size": 3.0})
    with pytest.raises(ProblemError, match=r"^groups\[1\]\.options\[0\]\.loss"):
        Problem.from_arrays([[1.0], [value]])


def tiny(**fields):
    group = {"name": "a", "options": [{"name": "x", "loss": 1, "costs": {"s": 1}}]}
    other = {**group, "name": "b"}
    return {"groups": [group, other], "limits": {"s": 3}, **fields}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"fixed": {"a": 5}}, "fixed.a"),
        ({"forbidden": [[1, "x"]]}, "forbidden[0]"),
        ({"ties": [["a", 1]]}, "ties[0]"),
        ({"rows": {"m": [{"costs": {"a": 5}}]}}, "rows.m[0].costs.a"),
        (
            {"interactions": [{"groups": [["a"], "b"], "options": ["x", "x"], "loss": 1}]},
            "interactions[0].groups[0]",
        ),
        (
            {"interactions": [{"groups": ["a", "b"], "options": ["x", "x"], "loss": 1e308}]},
            "interactions[0].loss",
        ),
        ({"goal": {"minimize": {"worst_loss": 1}}}, "goal.minimize.worst_loss"),
    ],
)
def test_a_name_or_number_of_the_wrong_kind_is_refused_with_its_path(fields, path):
    with pytest.raises(ProblemError) as caught:
        Problem.from_dict(tiny(**fields))
    assert caught.value.path == path


def test_an_offending_value_of_any_size_leaves_a_message_of_one_screen():
    with pytest.raises(ProblemError) as caught:
        Problem.from_dict(tiny(limits={"s": "9" * 100_000}))
    assert "limits.s" in str(caught.value)
    assert len(str(caught.value)) < 1_500


def test_pairs_of_a_matrix_cost_what_the_matrix_says():
    rng = np.random.default_rng(8)
    groups, width = 4, 3
    loss = rng.random((groups, width))
    matrix = rng.normal(size=(groups * width, groups * width))
    matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
    for group in range(groups):
        own = slice(group * width, (group + 1) * width)
        matrix[own, own] = 0.0
    allowed = np.ones((groups, width), dtype=bool)
    allowed[2, 1] = False
    pairs = Interactions.from_matrix(matrix, allowed)
    assert not ((pairs.groups == 2) & (pairs.options == 1)).any()
    cost = {"size": np.ones((groups, width))}
    problem = Problem.from_arrays(loss, cost, {"size": groups}, allowed=allowed, interactions=pairs)
    least = min(
        loss[range(groups), columns].sum()
        + sum(
            matrix[a * width + columns[a], b * width + columns[b]]
            for a, b in itertools.combinations(range(groups), 2)
        )
        for columns in itertools.product(range(width), repeat=groups)
        if columns[2] != 1
    )
    assert solve(problem, "quadratic", gap=0).objective == pytest.approx(least)
