from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from torch import nn

import mpsearch as mp
from mpsearch.cli import main
from mpsearch.sensitivity.evidence import Comparison

OPTIONS = ["w2", "w4", "w8"]
NAMES = ["measured_loss", "fisher_output", "kurtosis", "pairwise"]


@pytest.fixture
def found(net, data) -> Comparison:
    return mp.compare_estimators(net, data, OPTIONS, NAMES, allocations=8, seed=1)


def test_single_choices_are_ranked_against_measurements(net, data, found):
    measured = mp.profile(net, data, OPTIONS, "measured_loss").loss.ravel()
    for row in found.rows:
        scores = mp.profile(net, data, OPTIONS, row.estimator, seed=1).loss.ravel()
        assert row.single_spearman == pytest.approx(stats.spearmanr(scores, measured).statistic)
        assert row.single_kendall == pytest.approx(stats.kendalltau(scores, measured).statistic)
    assert found.rows[0].single_spearman == pytest.approx(1)


def test_losses_are_those_of_the_allocations_at_the_budgets(net, exact, data, found):
    profile = mp.profile(net, data, OPTIONS, "measured_loss")
    sizes = np.array([net.get_submodule(g).weight.numel() for g in profile.groups], dtype=float)
    reference = nn.functional.cross_entropy(net(exact.inputs), exact.targets).item()
    for fraction, loss in zip(found.fractions, found.rows[0].losses, strict=True):
        limit = (2 + fraction * 6) * sizes.sum()
        best = min(
            np.ndindex(3, 3, 3, 3),
            key=lambda c: (
                (sizes @ np.array([2, 4, 8])[list(c)] > limit * (1 + 1e-9)),
                profile.loss[np.arange(4), list(c)].sum(),
            ),
        )
        choice = {g: OPTIONS[c] for g, c in zip(profile.groups, best, strict=True)}
        with mp.quantized(net, choice):
            measured = nn.functional.cross_entropy(net(exact.inputs), exact.targets).item()
        assert loss == pytest.approx(measured - reference, abs=1e-9)


def test_an_estimator_that_cannot_score_is_named_with_its_reason(net, data):
    found = mp.compare_estimators(
        net, data, ["w4a4", "w4a8"], ["measured_loss", "kurtosis"], allocations=3
    )
    assert "activations" in found.failures["kurtosis"]
    assert [row.estimator for row in found.rows] == ["measured_loss"]


def test_auto_takes_the_candidate_whose_proposals_measure_best(net, data):
    candidates = ["variance", "measured_loss"]
    found = mp.profile(net, data, OPTIONS, "auto", candidates=",".join(candidates))
    table = [found.statistics[f"auto_loss_at_{f}"] for f in ("25%", "50%", "75%")]
    best = {
        name: np.mean([np.log(max(c[name], 1e-9) / max(min(c.values()), 1e-9)) for c in table])
        for name in candidates
    }
    chosen = min(best, key=best.get)
    assert any(text.startswith(f"auto took {chosen}:") for text in found.warnings)
    assert np.array_equal(found.loss, mp.profile(net, data, OPTIONS, chosen).loss)


def test_auto_needs_two_candidates(net, data):
    with pytest.raises(mp.errors.InputError, match="at least 2"):
        mp.profile(net, data, OPTIONS, "auto", candidates="kurtosis")


def test_command_prints_a_table_saves_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "estimators",
                "compare",
                "digits-resnet",
                "--data",
                "digits",
                "--options",
                "w3a8,w8a8",
                "--estimators",
                "fisher_output,sqnr",
                "--allocations",
                "3",
                "--out",
                str(tmp_path / "c.json"),
                "--png",
                str(tmp_path / "c.png"),
                "--json",
            ]
        )
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert "fisher_output" in printed.err
    assert json.loads(printed.out)["kind"] == "comparison"
    assert len(Comparison.load(tmp_path / "c.json").rows) == 2
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_list_still_prints_every_estimator_as_json(capsys):
    with pytest.raises(SystemExit):
        main(["estimators", "--json"])
    listed = json.loads(capsys.readouterr().out)
    assert {"auto", "hessian_trace", "pairwise"} <= {entry["name"] for entry in listed}
    assert all(entry["memory"] and entry["source"] for entry in listed)
