from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

import mpsearch as mp
from mpsearch.schemas import Baseline, Costs, DataRecord, Measurement, Profile, Verification
from mpsearch_api.page.answer import measured_rows
from mpsearch_api.page.charts import bits_figure, colour_of, frontier_figure, measured_figure

OPTIONS = ["w2a8", "w4a8", "w8a8"]


@pytest.fixture
def priced() -> tuple[Profile, Costs]:
    rng = np.random.default_rng(0)
    groups = ["stem", "<b>body</b>", "head"]
    loss = np.sort(rng.random((3, 3)), axis=1)[:, ::-1]
    profile = Profile(
        groups=groups,
        options=OPTIONS,
        loss=loss,
        stderr=np.zeros((3, 3)),
        estimator="given",
        members={"head": ["head.a", "head.b"]},
    )
    memory = np.outer([10.0, 20.0, 30.0], [2.0, 4.0, 8.0])
    costs = Costs(
        groups=groups,
        options=OPTIONS,
        values={"weight_memory": memory},
        units={"weight_memory": "B"},
        members=profile.members,
    )
    return profile, costs


def test_the_frontier_chart_is_a_figure_plotly_accepts_with_every_point_and_the_chosen_one(priced):
    answer = mp.allocate(*priced, budget={"weight_memory": 200})
    curve = mp.frontier(*priced, resource="weight_memory")
    drawn = frontier_figure(curve, answer)
    go.Figure(data=drawn["data"], layout=drawn["layout"])
    pareto, uniform, chosen = drawn["data"]
    assert pareto["x"] == [point.usage for point in curve.points]
    assert uniform["text"] == OPTIONS
    assert (chosen["x"], chosen["y"]) == ([answer.costs["weight_memory"]], [answer.predicted_loss])
    assert len(frontier_figure(curve, None)["data"]) == 2


def test_the_bar_of_a_layer_has_its_bits_its_options_colour_and_its_scores_on_hover(priced):
    profile, _ = priced
    answer = mp.allocate(*priced, budget={"weight_memory": 200})
    drawn = bits_figure(answer, profile)
    go.Figure(data=drawn["data"], layout=drawn["layout"])
    bars = {
        layer: (bits, trace["marker"]["color"], hover)
        for trace in drawn["data"]
        for layer, bits, hover in zip(trace["x"], trace["y"], trace["customdata"], strict=True)
    }
    assert list(answer.layers) == ["stem", "<b>body</b>", "head.a", "head.b"]
    assert drawn["layout"]["xaxis"]["categoryarray"] == [
        "stem",
        "&lt;b&gt;body&lt;/b&gt;",
        "head.a",
        "head.b",
    ]
    for layer, option in answer.layers.items():
        bits, colour, hover = bars[layer.replace("<", "&lt;").replace(">", "&gt;")]
        assert bits == int(option[1])
        assert colour == colour_of(option, OPTIONS)
        group = "head" if layer.startswith("head") else layer
        scores = profile.loss[profile.groups.index(group)]
        for name, score in zip(OPTIONS, scores, strict=True):
            assert f"{name}: {score:+.4g}" in hover
    assert "shared by 2 layers" in bars["head.a"][2]


def test_options_of_one_job_have_unlike_colours():
    assert len({colour_of(name, OPTIONS) for name in OPTIONS}) == len(OPTIONS)


def test_figures_are_plain_json(priced):
    answer = mp.allocate(*priced, budget={"weight_memory": 200})
    curve = mp.frontier(*priced, resource="weight_memory")
    json.dumps([frontier_figure(curve, answer), bits_figure(answer, priced[0])], allow_nan=False)


def test_what_was_measured_is_listed_and_drawn_and_baselines_without_an_allocation_are_not(priced):
    answer = mp.allocate(*priced, budget={"weight_memory": 200})
    assert measured_rows(answer) == []
    assert measured_figure(answer) is None
    found = Verification(
        data=DataRecord(name="digits", fingerprint="0", inputs=7),
        held_out=True,
        loss_function="cross_entropy",
        metric_name="accuracy",
        float_model=Measurement(loss=0.1, metric=0.99),
        allocation=Measurement(loss=0.2, metric=0.975),
        baselines=[
            Baseline(
                name="uniform",
                description="w2a8",
                exists=True,
                measurement=Measurement(loss=0.5, metric=0.9),
            ),
            Baseline(name="tail-high", description="none fits", exists=False),
        ],
    )
    answer = answer.model_copy(update={"verification": found})
    rows = measured_rows(answer)
    assert [row["name"] for row in rows] == ["float", "mpsearch", "uniform"]
    assert rows[1] == {"name": "mpsearch", "loss": "0.20000", "metric": "97.50%", "note": ""}
    drawn = measured_figure(answer)
    go.Figure(data=drawn["data"], layout=drawn["layout"])
    assert drawn["data"][0]["y"] == [0.1, 0.2, 0.5]
