from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpsearch import models

WEIGHTS = Path(models.__file__).parent / "weights" / "digits-resnet.safetensors"
MODEL = ["digits-resnet", "--data", "digits"]
QUICK = ["--options", "w2a8,w4a8,w8a8", "--estimator", "fisher_output"]
BUDGET = ["--budget", "weight_memory=0.16x"]
SUBMIT = ["submit", *MODEL, *QUICK, *BUDGET]


@pytest.fixture
def service(served, monkeypatch):
    monkeypatch.setenv("MPSEARCH_SERVER", served.address)
    monkeypatch.delenv("MPSEARCH_API_KEY", raising=False)
    return served


@pytest.fixture(scope="module")
def done(served) -> str:
    """Id of a job that succeeded."""
    from mpsearch.client import Client

    with Client(served.address) as client:
        job = client.submit(
            "digits-resnet",
            "digits",
            options=["w2a8", "w4a8", "w8a8"],
            estimator="fisher_output",
            budget={"weight_memory": "0.16x"},
            label="for the command line",
        )
        assert client.wait(job).status == "succeeded"
    return job.id


def test_a_submitted_job_is_named_on_stdout_watched_and_cancelled(run, service) -> None:
    submitted = run(*SUBMIT)
    assert submitted.code == 0
    job = submitted.out.strip()
    assert job.startswith("job_")
    assert service.address in submitted.message
    assert run("cancel", job, "--json").json["status"] == "cancelled"
    watched = run("watch", job)
    assert watched.code == 4
    assert "was cancelled" in watched.message


def test_waiting_shows_the_result_writes_the_files_and_opens_the_gates(
    run, service, tmp_path
) -> None:
    out = tmp_path / "artifacts"
    gates = ["--fail-if", "accuracy_drop > 90%", "--fail-if", "usage.weight_memory > 1 GB"]
    result = run(*SUBMIT, "--seed", 1, "--wait", *gates, "--out", out, "--json")
    assert result.code == 0, result.err
    assert result.json["status"] == "optimal"
    assert json.loads((out / "allocation.json").read_text()) == result.json
    assert {"report.html", "frontier.png", "layers.csv"} <= {path.name for path in out.iterdir()}


def test_a_gate_that_holds_fails_the_pipeline_with_5(run, service, done, tmp_path) -> None:
    gate = "gap <= 1 and usage.weight_memory > 0 B"
    result = run("result", done, "--fail-if", gate, "--out", tmp_path / "out", "--json")
    assert result.code == 5
    assert "usage.weight_memory = " in result.message
    # The files and the answer are there all the same, to be looked at.
    assert result.json["status"] == "optimal"
    assert (tmp_path / "out" / "report.html").is_file()


def test_gates_are_read_before_anything_is_sent(run, monkeypatch) -> None:
    monkeypatch.setenv("MPSEARCH_SERVER", "http://127.0.0.1:1")
    typo = run(*SUBMIT, "--fail-if", "acuracy_drop > 1%")
    assert typo.code == 2
    assert "did you mean accuracy_drop" in typo.message
    unmeasured = run(*SUBMIT, "--no-verify", "--fail-if", "accuracy_drop > 1%")
    assert unmeasured.code == 2
    assert "nothing will be run" in unmeasured.message


def test_files_here_are_uploaded_and_searched(run, service, tmp_path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = tmp_path / "digits.npz"
    inputs = (digits.images[:256, None] / 16).astype(np.float32)
    np.savez(data, inputs=inputs, targets=digits.target[:256])
    result = run(
        "submit", f"digits-resnet@{WEIGHTS}", "--data", data, *QUICK, *BUDGET, "--wait", "--json"
    )
    assert result.code == 0, result.err
    assert result.json["verification"]["allocation"]["metric"] > 0.9


def test_a_budget_nothing_keeps_exits_with_3(run, service) -> None:
    result = run("submit", *MODEL, *QUICK, "--budget", "weight_memory=1 kB", "--wait")
    assert result.code == 3
    assert "least achievable" in result.message


def test_what_the_service_refuses_exits_with_2(run, service) -> None:
    wrong = run("submit", "digits-resnett", "--data", "digits", *BUDGET)
    assert wrong.code == 2
    assert "digits-resnet" in wrong.message
    assert run("submit", *MODEL).code == 2
    missing = run("submit", "digits-resnet@missing.safetensors", "--data", "digits", *BUDGET)
    assert missing.code == 2
    assert "No such file" in missing.message
    assert run("result", "job_unknown").code == 2
    assert run("watch", "job_unknown").code == 2


def test_nothing_there_exits_with_4_and_says_how_to_start_it(run) -> None:
    result = run("jobs", "--server", "http://127.0.0.1:1")
    assert result.code == 4
    assert "mpsearch serve" in result.message


def test_an_address_that_is_none_exits_with_2(run) -> None:
    assert run("jobs", "--server", "localhost:8000").code == 2


def test_jobs_are_listed_for_people_and_for_programs(run, service, done) -> None:
    listed = run("jobs", "--limit", 1000)
    assert done in listed.err
    assert "for the command line" in listed.message
    found = run("jobs", "--status", "succeeded", "--json").json
    assert done in [job["id"] for job in found]
    assert {job["status"] for job in found} == {"succeeded"}
    assert run("jobs", "--status", "failing").code == 2


def test_the_result_of_a_job_is_shown_with_its_certificate(run, service, done) -> None:
    result = run("result", done)
    assert result.code == 0
    assert "optimal" in result.message
    assert "Measured on" in result.message


def test_watching_a_job_that_has_ended_tells_its_whole_story(run, service, done) -> None:
    watched = run("watch", done, "--json")
    assert watched.code == 0
    events = [json.loads(line) for line in watched.out.splitlines()]
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["status"] == "succeeded"
    assert {"profile", "solve", "verify"} <= {event.get("stage") for event in events}


def test_a_job_that_has_not_ended_has_no_result(run, service) -> None:
    job = run(*SUBMIT, "--seed", 2).out.strip()
    assert run("result", job).code == 2
    timed_out = run("watch", job, "--timeout", "0.1")
    assert timed_out.code == 4
    assert "it goes on" in timed_out.message
    run("cancel", job)


def test_the_same_idempotency_key_gives_the_same_job(run, service) -> None:
    first = run(*SUBMIT, "--seed", 3, "--idempotency-key", "build-1")
    assert run(*SUBMIT, "--seed", 3, "--idempotency-key", "build-1").out == first.out
    run("cancel", first.out.strip())


def test_a_folder_that_is_a_file_is_refused_before_the_job_is_queued(run, tmp_path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert run(*SUBMIT, "--out", path, "--server", "http://127.0.0.1:1").code == 2


def test_a_search_here_knows_gates_too(run) -> None:
    search = ["search", *MODEL, *QUICK, *BUDGET, "--no-verify"]
    assert run(*search, "--fail-if", "share.weight_memory > 1").code == 0
    held = run(*search, "--fail-if", "status == optimal", "--json")
    assert held.code == 5
    assert held.json["status"] == "optimal"
    assert run(*search, "--fail-if", "accuracy_drop > 1%").code == 2
