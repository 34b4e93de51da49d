from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import mpsearch as mp
from mpsearch.cli import main
from mpsearch.refining import Refined
from mpsearch.sensitivity import build
from mpsearch.sensitivity.auto import most_trusted
from mpsearch.sensitivity.evidence import Comparison

OPTIONS = ["w2", "w4", "w8"]
BITS = np.array([2, 4, 8])
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


def test_the_allocations_of_auto_are_refined_as_a_search_refines_them(net, data, monkeypatch):
    asked = []

    def first_but_one(first, propose, measure, key, *, proposals, seed):
        asked.append(proposals)
        worse = [0] * len(first)  # every layer at two bits: something else than the first
        assert measure(worse).mean() > measure(first).mean()
        assert len(propose(np.random.default_rng(seed), 0.3)) == len(key(first))
        return Refined(worse, 2, 0.0, 0.0, None)

    monkeypatch.setattr("mpsearch.sensitivity.evidence.refine", first_but_one)
    found = mp.compare_estimators(net, data, OPTIONS, ["pairwise", "auto"], allocations=3)
    pairwise, auto = found.rows
    assert asked == [32] * 3
    with mp.quantized(net, dict.fromkeys(mp.profile(net, data, OPTIONS, "variance").groups, "w2")):
        harsh = nn.functional.cross_entropy(net(data.inputs), data.targets).item()
    assert auto.losses == pytest.approx([harsh - found.float_loss] * 3, abs=1e-6)
    assert min(auto.losses) > max(pairwise.losses)


def test_an_estimator_that_cannot_score_is_named_with_its_reason(net, data):
    found = mp.compare_estimators(
        net, data, ["w4a4", "w4a8"], ["measured_loss", "kurtosis"], allocations=3
    )
    assert "activations" in found.failures["kurtosis"]
    assert [row.estimator for row in found.rows] == ["measured_loss"]


def test_auto_takes_the_last_candidate_that_measures_no_worse_on_unseen_inputs(net, exact, data):
    candidates = ["variance", "measured_loss"]
    found = mp.profile(net, data, OPTIONS, "auto", candidates=",".join(candidates), seed=5)
    folds = np.array_split(np.random.default_rng(5).permutation(12), 5)
    sizes = np.array([net.get_submodule(g).weight.numel() for g in found.groups], dtype=float)
    each = np.zeros((5, 2, 3))
    for position, fold in enumerate(folds):
        unseen = torch.from_numpy(fold)
        seen = torch.from_numpy(np.setdiff1d(np.arange(12), fold))
        part = mp.DataSet("d", exact.inputs[seen], exact.targets[seen], batch_size=5)
        for number, name in enumerate(candidates):
            table = mp.profile(net, part, OPTIONS, name).loss
            for budget, fraction in enumerate((0.25, 0.5, 0.75)):
                limit = (2 + 6 * fraction) * sizes.sum() * (1 + 1e-9)
                best = min(
                    (c for c in np.ndindex(3, 3, 3, 3) if sizes @ BITS[list(c)] <= limit),
                    key=lambda c, table=table: table[np.arange(4), list(c)].sum(),
                )
                choice = {g: OPTIONS[c] for g, c in zip(found.groups, best, strict=True)}
                with torch.no_grad(), mp.quantized(net, choice):
                    output = net(exact.inputs[unseen])
                    loss = nn.functional.cross_entropy(output, exact.targets[unseen])
                each[position, number, budget] = loss.item()
    mean = np.average(each, axis=0, weights=[len(fold) for fold in folds])
    for budget, name in enumerate(("25%", "50%", "75%")):
        shown = found.statistics[f"auto_loss_at_{name}"]
        assert [shown[c] for c in candidates] == pytest.approx(mean[:, budget].tolist())
    best = int(np.argmin(np.log(mean / mean.min(axis=0)).mean(axis=1)))
    worse = np.log(each[:, 1] / each[:, best]).mean(axis=1)
    # The second is the more trusted one: taken unless it is measurably worse.
    tied = worse.mean() <= stats.sem(worse)
    chosen = candidates[1] if tied else candidates[best]
    assert any(text.startswith(f"auto took {chosen}:") for text in found.warnings)
    assert np.array_equal(found.loss, mp.profile(net, data, OPTIONS, chosen).loss)


def test_a_later_candidate_is_taken_unless_it_is_measurably_worse():
    best = np.array([0.0, 0.1, -0.1, 0.2, 0.0])
    noise = np.array([0.5, -0.4, 0.3, -0.5, 0.3])
    tied, worse = best + 0.1 + noise, best + 0.1 + noise / 100
    assert most_trusted(np.stack([best, worse, tied], axis=1), 0) == 2
    assert most_trusted(np.stack([best, tied, worse], axis=1), 0) == 1
    assert most_trusted(np.stack([best, worse], axis=1), 0) == 0
    assert most_trusted(np.stack([worse, best], axis=1), 1) == 1
    assert most_trusted(np.array([[0.3, 0.1, 0.2]]), 1) == 1


@pytest.mark.parametrize("memory_limit", [None, 1])
@pytest.mark.parametrize("estimator", ["measured_kl", "pairwise", "taylor2", "fisher_output"])
def test_parts_are_scored_as_if_there_were_no_other_inputs(
    net, exact, data, estimator, memory_limit
):
    scorer = build(estimator, {"shrink": 1.0} if estimator == "pairwise" else {})
    grabbed = []

    class Grabbing(type(scorer)):
        def score(self, task):
            grabbed.append(replace(task, memory_limit=memory_limit))
            return super().score(task)

    mp.profile(net, data, OPTIONS, Grabbing())
    parts = [np.array([0, 3, 7]), np.arange(5, 12)]
    scores = scorer.score_parts(grabbed[0], parts)
    for rows, found in zip(parts, scores, strict=True):
        part = mp.DataSet("d", exact.inputs[rows], exact.targets[rows], batch_size=5)
        settings = {"shrink": 1.0} if estimator == "pairwise" else {}
        alone = mp.profile(net, part, OPTIONS, estimator, **settings)
        tolerance = 0.5 if estimator == "taylor2" else 1e-5  # other draws
        assert np.allclose(found.loss, alone.loss, rtol=tolerance, atol=1e-7)
        if estimator == "pairwise" and memory_limit is None:
            assert np.allclose(found.interactions, alone.interactions, rtol=1e-4, atol=1e-6)


def test_candidates_share_what_they_measure(net, exact):
    inputs = mp.DataSet("d", exact.inputs, batch_size=12)
    runs = []
    hook = net.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    mp.profile(net, inputs, OPTIONS, "pairwise")
    alone = sum(runs)
    runs.clear()
    mp.profile(net, inputs, OPTIONS, "auto", candidates="measured_kl,pairwise")
    hook.remove()
    # All candidates on all folds from one measurement, the answer from another at most, and
    # proposals at three budgets on every fold.
    assert sum(runs) <= 2 * alone + 12 * (2 * 3 + 5)


def test_auto_scores_a_single_input_too(net, exact):
    found = mp.profile(net, exact.inputs[:1], OPTIONS, "auto", candidates="measured_kl,kurtosis")
    assert any("auto took" in text for text in found.warnings)


def test_allocations_may_be_judged_by_another_loss(net, exact, data):
    names = ["measured_loss"]
    by_kl = mp.compare_estimators(
        net, data, OPTIONS, names, judged_by="kl_to_float", allocations=3, fractions=[0.5]
    )
    by_loss = mp.compare_estimators(net, data, OPTIONS, names, allocations=3, fractions=[0.5])
    assert by_kl.judged_by == "kl_to_float"
    assert by_kl.float_loss == pytest.approx(0, abs=1e-12)
    assert by_kl.rows[0].losses[0] > 0
    assert by_kl.rows[0].losses != by_loss.rows[0].losses
    assert by_kl.rows[0].single_spearman == by_loss.rows[0].single_spearman == 1


def test_fractions_that_are_no_numbers_are_refused(capsys):
    command = "estimators compare digits-resnet --data digits --options w4 --fractions 1/2"
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert "0.3,0.5,0.7" in capsys.readouterr().err


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


PROGRAM = """
import sys
import mpsearch as mp
from mpsearch.models.digits import digits

whole = digits()
data = mp.DataSet("few", whole.inputs[:48], whole.targets[:48], batch_size=24)

def tell(progress):
    if progress.stage in {"compare", "profile"}:
        print(progress.stage, progress.done, progress.message.partition(":")[0], flush=True)
    if progress.stage == "compare" and progress.done == int(sys.argv[2]):
        sys.stdin.readline()

found = mp.compare_estimators(
    "digits-resnet", data, ["w2", "w4"], ["fisher_output", "kurtosis", "taylor2"],
    allocations=4, cache_dir=sys.argv[1], on_progress=tell,
)
print(found.model_dump_json())
"""


def comparing(folder, stop):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(stop)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def without_seconds(text):
    found = Comparison.model_validate_json(text)
    return [row.model_copy(update={"seconds": 0.0, "resumed": False}) for row in found.rows]


@pytest.mark.slow
def test_a_comparison_that_was_killed_goes_on_from_its_last_row(tmp_path):
    run = comparing(tmp_path / "killed", 2)
    for line in run.stdout:
        if line.startswith("compare 2"):
            break
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.stdout.close()
    run.stdin.close()
    resumed, _ = comparing(tmp_path / "killed", -1).communicate(timeout=120)
    whole, _ = comparing(tmp_path / "whole", -1).communicate(timeout=120)
    *said, result = resumed.splitlines()
    # The rows of the first two estimators are read; only the third scores.
    scoring = {line.split()[2] for line in said if line.startswith("profile")}
    assert "taylor2" in scoring
    assert not scoring & {"fisher_output", "kurtosis"}
    assert without_seconds(result) == without_seconds(whole.splitlines()[-1])
    again = Comparison.model_validate_json(result)
    assert [row.resumed for row in again.rows] == [False, False, False]


def test_a_row_whose_scoring_was_stopped_says_so(net, data, tmp_path):
    def stopping(progress):
        if progress.message.startswith("fisher_output"):
            raise KeyboardInterrupt

    names = ["kurtosis", "fisher_output"]
    settings = {"allocations": 3, "cache_dir": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        mp.compare_estimators(net, data, OPTIONS, names, on_progress=stopping, **settings)
    found = mp.compare_estimators(net, data, OPTIONS, names, **settings)
    assert [row.resumed for row in found.rows] == [False, True]


def test_a_kept_row_is_of_its_own_budgets_and_data(net, exact, data, tmp_path):
    settings = {"allocations": 3, "cache_dir": tmp_path}
    names = ["kurtosis"]
    one = mp.compare_estimators(net, data, OPTIONS, names, fractions=[0.3], **settings)
    two = mp.compare_estimators(net, data, OPTIONS, names, fractions=[0.3, 0.9], **settings)
    held = mp.DataSet(
        "d", exact.inputs, exact.targets, exact.inputs[:3] + 1, exact.targets[:3], batch_size=5
    )
    other = mp.compare_estimators(net, held, OPTIONS, names, fractions=[0.3], **settings)
    assert len(one.rows[0].losses) == 1
    assert len(two.rows[0].losses) == 2
    assert other.rows[0].losses != one.rows[0].losses


def test_a_kept_row_that_cannot_be_read_is_measured_again_with_a_warning(net, data, tmp_path):
    settings = {"allocations": 3, "cache_dir": tmp_path}
    one = mp.compare_estimators(net, data, OPTIONS, ["kurtosis"], **settings)
    (file,) = (tmp_path / "comparisons").glob("kurtosis-*.json")
    file.write_text(file.read_text()[:-20])
    with pytest.warns(RuntimeWarning, match="measured again"):
        two = mp.compare_estimators(net, data, OPTIONS, ["kurtosis"], **settings)
    assert two.rows[0].losses == one.rows[0].losses


def test_progress_counts_estimators_and_names_who_scores(net, data):
    seen = []
    mp.compare_estimators(
        net, data, OPTIONS, ["kurtosis", "fisher_output"], allocations=3, on_progress=seen.append
    )
    counted = [(p.done, p.total) for p in seen if p.stage == "compare"]
    assert counted == [(0, 2), (1, 2), (2, 2)]
    assert any(p.stage == "profile" and p.message.startswith("fisher_output: ") for p in seen)
    assert seen[-1].seconds_left == 0
