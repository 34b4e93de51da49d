from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import mpsearch as mp

FILES = {
    "allocation.json",
    "bits.png",
    "costs.json",
    "frontier.json",
    "frontier.png",
    "profile.json",
}
MODEL = ["search", "digits-resnet", "--data", "digits"]
MENU = ["--options", "w2a8,w3a8,w4a8,w6a8,w8a8"]
BUDGETS = ["--budget", "weight_memory=0.12x", "--budget", "bops=0.05x"]
SEARCH = [*MODEL, *MENU, "--estimator", "measured_loss", *BUDGETS]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Files of one whole search, made once."""
    from mpsearch.cli import main

    folder = tmp_path_factory.mktemp("search") / "out"
    with pytest.raises(SystemExit) as caught:
        main([*SEARCH, "--out", str(folder)])
    assert not caught.value.code
    return folder


@pytest.fixture
def own_models(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    sys.modules.pop("own_models", None)


def test_a_search_writes_all_its_files(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("frontier.png", "bits.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n")


def test_the_allocation_carries_its_certificate_and_its_measurement(out: Path) -> None:
    answer = json.loads((out / "allocation.json").read_text())
    assert answer["status"] == "optimal"
    assert answer["gap"] <= 1e-6
    assert answer["bound"] <= answer["objective"] + 1e-12
    assert len(answer["layers"]) == 10
    assert set(answer["budgets"]) == {"weight_memory", "bops"}
    for budget, unit in (("weight_memory", "B"), ("bops", "BOPs")):
        use = answer["budgets"][budget]
        assert use["unit"] == unit
        assert use["usage"] <= use["limit"]
    verification = answer["verification"]
    assert verification["held_out"]
    assert verification["data"]["inputs"] == 719
    assert verification["float_model"]["metric"] >= 0.98
    assert answer["model"]["name"] == "digits-resnet"


def test_the_found_allocation_beats_every_baseline_that_exists(out: Path) -> None:
    verification = json.loads((out / "allocation.json").read_text())["verification"]
    found = verification["allocation"]["loss"]
    existing = [b for b in verification["baselines"] if b["exists"]]
    assert {b["name"] for b in existing} == {"uniform", "head-high", "tail-high", "random"}
    assert all(found < b["measurement"]["loss"] for b in existing)


def test_saved_scores_are_solved_for_another_budget_and_nothing_is_verified(run, out: Path) -> None:
    saved = ["--profile", out / "profile.json", "--costs", out / "costs.json"]
    result = run("search", *saved, "--budget", "weight_memory=0.2x", "--json")
    assert result.code == 0
    assert "Nothing was verified" in result.message
    assert result.json["verification"] is None
    tighter = json.loads((out / "allocation.json").read_text())
    assert result.json["predicted_loss"] <= tighter["predicted_loss"]


def test_a_saved_profile_is_used_for_its_own_model(run, out: Path) -> None:
    result = run(
        "search", "digits-resnet", "-d", "digits", "--profile", out / "profile.json",
        "-b", "weight_memory=0.15x", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert result.json["verification"]["allocation"]["metric"] > 0.95


def test_stages_one_by_one_give_what_the_search_gives(run, out: Path, tmp_path: Path) -> None:
    menu = ["--options", "w2a8,w3a8,w4a8,w6a8,w8a8"]
    model = ["digits-resnet", "--data", "digits", *menu]
    assert run("profile", *model, "--out", tmp_path / "p.json").code == 0
    assert run("price", *model, "--out", tmp_path / "c.json").code == 0
    saved = ["--profile", tmp_path / "p.json", "--costs", tmp_path / "c.json"]
    budgets = ["-b", "weight_memory=0.12x", "-b", "bops=0.05x"]
    again = run("search", *saved, *budgets, "--out", tmp_path / "out", "--json").json
    whole = json.loads((out / "allocation.json").read_text())
    assert again["layers"] == whole["layers"]
    verified = run(
        "verify", "digits-resnet", "-d", "digits",
        "--allocation", tmp_path / "out" / "allocation.json", *saved, "--json",
    )  # fmt: skip
    assert verified.code == 0
    assert verified.json["verification"]["allocation"] == whole["verification"]["allocation"]
    curve = run("frontier", *saved, "-b", "bops=0.05x", "--png", tmp_path / "f.png", "--json")
    assert curve.code == 0
    assert curve.json["points"] == json.loads((out / "frontier.json").read_text())["points"]
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_the_smallest_model_within_a_drop_is_found_and_measured(run, out: Path) -> None:
    result = run(
        "search", "digits-resnet", "-d", "digits", "--profile", out / "profile.json",
        "--costs", out / "costs.json", "--goal", "min:weight_memory", "--max-drop", "0.01",
        "--json",
    )  # fmt: skip
    assert result.code == 0
    verification = result.json["verification"]
    drop = verification["float_model"]["metric"] - verification["allocation"]["metric"]
    assert drop <= 0.01
    assert result.json["max_drop"] == 0.01
    # Much smaller than the smallest uniform allocation that keeps the drop, w4a8 at 0.135x.
    assert result.json["costs"]["weight_memory"] < 0.12 * 4 * 77000


def test_saved_scores_are_refined_on_the_model_and_only_there(run, tmp_path: Path) -> None:
    menu = ["digits-resnet", "-d", "digits", "--options", "w2,w3,w4,w8"]
    assert run("profile", *menu, "-e", "variance", "--out", tmp_path / "p.json").code == 0
    assert run("price", *menu, "--out", tmp_path / "c.json").code == 0
    saved = ["--profile", tmp_path / "p.json", "--costs", tmp_path / "c.json"]
    asked = [*saved, "-b", "average_bits=3", "--refine", "8"]
    refused = run("search", *asked)
    assert (refused.code, "needs a MODEL" in refused.message) == (2, True)
    found = run("search", "digits-resnet", "-d", "digits", *asked, "--json")
    assert found.code == 0
    record = found.json["refinement"]
    assert record["loss_after"] < record["loss_before"]
    assert found.json["status"] == "feasible"
    assert f"loss {record['loss_after']:.6g} in place of" in found.message


def test_a_smallest_allocation_says_what_was_not_proven(run, out: Path) -> None:
    result = run(
        "search", "digits-resnet", "-d", "digits", "--profile", out / "profile.json",
        "--costs", out / "costs.json", "--goal", "min:weight_memory", "--max-drop", "0.02",
    )  # fmt: skip
    assert "smallest found for min:weight_memory" in result.message
    assert "smaller ones not excluded" in result.message
    assert "no independent estimate" in result.message


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("--fix fc=w8a8", "--fix"),
        ("--options w4a8 --skip fc", "--options, --skip"),
        ("--loss mse", "--loss"),
        ("--data digits", "--data"),
    ],
)
def test_flags_that_could_not_act_on_saved_scores_are_refused(
    run, out: Path, words: str, flag: str
) -> None:
    saved = ["--profile", out / "profile.json", "--costs", out / "costs.json"]
    result = run("search", *saved, "-b", "weight_memory=0.2x", *words.split())
    assert result.code == 2
    assert flag in result.message


def test_the_saved_frontier_keeps_the_other_budgets(run, out: Path, tmp_path: Path) -> None:
    saved = ["--profile", out / "profile.json", "--costs", out / "costs.json"]
    budgets = ["-b", "weight_memory=0.2x", "-b", "bops=0.03x"]
    assert run("search", *saved, *budgets, "--out", tmp_path / "out").code == 0
    curve = json.loads((tmp_path / "out" / "frontier.json").read_text())
    costs = mp.Costs.load(out / "costs.json")
    limit = 0.03 * costs.baseline["bops"]
    points = [*curve["points"], *curve["uniform"].values()]
    for point in points:
        columns = [costs.options.index(option) for option in point["groups"].values()]
        assert costs.usage("bops", np.array(columns)) <= limit
    assert len(curve["points"]) > 3


def test_fixed_grouped_and_skipped_layers_are_respected(run, tmp_path: Path) -> None:
    result = run(
        "search", "digits-resnet", "-d", "digits", "-e", "gradient_deviation",
        "--fix", "fc=w8a8", "--group", "layer2.*", "--skip", "conv1",
        "-b", "weight_memory=0.15x", "--json",
    )  # fmt: skip
    assert result.code == 0
    layers = result.json["layers"]
    assert layers["fc"] == "w8a8"
    assert "conv1" not in layers
    assert len({option for name, option in layers.items() if name.startswith("layer2.")}) == 1
    assert "layer2.*" in result.json["groups"]


@pytest.mark.parametrize("estimator", ["gradient_deviation", "hessian_trace"])
def test_every_estimator_runs_from_the_command_line(run, estimator: str) -> None:
    result = run(*MODEL, *MENU, "--estimator", estimator, "-b", "weight_memory=0.12x", "--json")
    assert result.code == 0
    assert result.json["estimator"] == estimator
    assert any("below 3 bits" in warning for warning in result.json["warnings"])


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("no-such-model -d digits -b weight_memory=0.5x", 2, "unknown model 'no-such-model'"),
        ("digits-resnet -d digit -b weight_memory=0.5x", 2, "did you mean digits?"),
        ("digits-resnet -d digits --options w4a8,w99a8 -b weight_memory=0.5x", 2, "w99a8"),
        ("digits-resnet -d digits --options banana -b weight_memory=0.5x", 2, "banana"),
        ("digits-resnet -d digits -b weight_memory=3parsec", 2, "parsec"),
        ("digits-resnet -d digits -b memory=0.5x", 2, "unknown resource 'memory'"),
        ("digits-resnet -d digits -e hesian -b weight_memory=0.5x", 2, "hessian_trace"),
        ("digits-resnet -d digits --set probes=1 -e hessian_trace -b bops=1x", 2, "at least 2"),
        ("digits-resnet -d digits --set moon=1 -b bops=1x", 2, "moon"),
        ("digits-resnet -d digits --loss hinge -b bops=1x", 2, "cross_entropy"),
        ("digits-resnet -d digits -b weight_memory=0", 2, "greater than zero"),
        ("digits-resnet -d digits -b weight_memory=-2MB", 2, "greater than zero"),
        ("digits-resnet -d digits", 2, "at least one budget"),
        ("digits-resnet -b bops=1x", 2, "--data"),
        ("-b bops=1x", 2, "--profile and --costs"),
        ("digits-resnet -d digits -b bops=1x -b bops=2x", 2, "two budgets for bops"),
        ("digits-resnet -d digits -b bops=1x --device moon", 2, "moon"),
        ("digits-resnet -d digits -b bops=1x --hardware h100", 2, "nvidia-h100"),
        ("digits-resnet -d digits -b bops=1x --solver oracle -e gradient_deviation", 2, "oracle"),
        ("digits-resnet -d digits -b bops=1x --max-drop 0.1", 2, "--goal"),
        ("digits-resnet -d digits --goal max:bops --max-drop 0.1", 2, "min:RESOURCE"),
        ("digits-resnet -d digits --goal min:bops", 2, "--max-drop"),
        ("digits-resnet -d digits --goal min:bops --max-drop 0.1 --refine 4", 2, "one of them"),
        ("digits-resnet -d digits -b bops=1x --refine -1", 2, "--refine"),
        (
            "digits-resnet -d digits -b weight_memory=0.05x -e gradient_deviation",
            3,
            "all groups at",
        ),
        ("own_models:nan_weights -d digits -b bops=1x", 2, "layer1.0.conv1.weight"),
        ("own_models:no_layers -d digits -b bops=1x", 2, "no layer"),
        ("own_models:NOT_A_FUNCTION -d digits -b bops=1x", 2, "not a function"),
        ("own_models:missing -d digits -b bops=1x", 2, "cannot import"),
        ("own_models:few_digits -d digits -b bops=1x", 2, "not a torch.nn.Module"),
        ("digits-resnet -d own_models:empty_data -b bops=1x", 2, "empty"),
        ("digits-resnet -d own_models:no_rows -b bops=1x", 2, "empty"),
        ("digits-resnet -d own_models:wrong_shape -b bops=1x", 2, "does not accept inputs"),
    ],
)
def test_bad_input_is_a_clear_error_and_nothing_is_written(
    run, tmp_path: Path, words: str, code: int, message: str
) -> None:
    result = run("search", *words.split(), "--out", tmp_path / "out")
    assert result.code == code, result.err
    assert message in result.message
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) < 25
    assert not (tmp_path / "out").exists()
    assert result.out == ""


def test_a_budget_below_the_minimum_names_the_least_achievable(run, out: Path) -> None:
    saved = ["--profile", out / "profile.json", "--costs", out / "costs.json"]
    result = run("search", *saved, "--budget", "weight_memory=0.01x")
    assert result.code == 3
    assert "19.96 kB (all groups at w2a8)" in result.message


def test_a_truncated_profile_is_a_clear_error(run, out: Path, tmp_path: Path) -> None:
    broken = tmp_path / "profile.json"
    broken.write_bytes((out / "profile.json").read_bytes()[:500])
    result = run("search", "--profile", broken, "--costs", out / "costs.json", "-b", "bops=1x")
    assert result.code == 2
    assert "is not a valid profile" in result.message


@pytest.mark.usefixtures("own_models")
def test_a_profile_of_another_model_is_refused(run, out: Path, tmp_path: Path) -> None:
    result = run(
        "search", "own_models:another", "-d", "own_models:few_digits",
        "--profile", out / "profile.json", "-b", "bops=1x", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "belongs to another model" in result.message
    assert not (tmp_path / "out").exists()


def test_costs_given_as_a_profile_are_refused(run, out: Path) -> None:
    saved = ["--profile", out / "costs.json", "--costs", out / "profile.json"]
    result = run("search", *saved, "-b", "bops=1x")
    assert result.code == 2
    assert "not a valid profile" in result.message


def test_out_must_not_be_a_file(run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    result = run(
        "search", "digits-resnet", "-d", "digits", "-b", "bops=1x", "-o", tmp_path / "taken"
    )
    assert result.code == 2
    assert "give a folder" in result.message


@pytest.mark.usefixtures("own_models")
def test_a_model_of_the_users_own_is_searched_and_left_unverified_on_request(run) -> None:
    result = run(
        "search", "own_models:another", "-d", "own_models:few_digits", "--no-verify",
        "-b", "weight_memory=50%", "--clamp", "--json",
    )  # fmt: skip
    assert result.code == 0
    assert result.json["verification"] is None
    assert result.json["monotone"] == "clamp"


def test_help_teaches(run) -> None:
    result = run("search", "--help")
    assert result.code == 0
    assert "weight_memory=0.12x" in result.out + result.err
    assert run("--version").out.startswith("mpsearch 0.")


def test_the_estimators_are_listed_for_people_and_programs(run) -> None:
    assert "hessian_trace" in run("estimators").err
    names = {entry["name"] for entry in run("estimators", "--json").json}
    assert {"gradient_deviation", "hessian_trace", "measured_loss"} <= names
