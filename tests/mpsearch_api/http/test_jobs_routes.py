"""Submitting, reading, waiting for, cancelling and deleting jobs over HTTP."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from tests.mpsearch_api.http.running import JOB, MakeSite, Site


def test_a_submitted_job_is_queued_and_can_be_read_where_location_says(site: Site) -> None:
    answer = site.client.post("/v1/jobs", json=JOB)
    assert answer.status_code == 202
    assert int(answer.headers["Retry-After"]) >= 1
    found = site.client.get(answer.headers["Location"])
    assert found.json() == answer.json()
    assert found.json()["status"] == "queued"
    assert found.json()["attempt"] == 0


def test_the_same_idempotency_key_submits_once(site: Site) -> None:
    headers = {"Idempotency-Key": "build-17"}
    first = site.client.post("/v1/jobs", json=JOB, headers=headers)
    again = site.client.post("/v1/jobs", json=JOB, headers=headers)
    other = site.client.post("/v1/jobs", json=JOB | {"seed": 1}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert first.json()["id"] == again.json()["id"]
    assert len(site.client.get("/v1/jobs").json()["items"]) == 1


@pytest.mark.parametrize(
    ("change", "pointer", "words"),
    [
        ({"model": "digits-resnit"}, "#/model", "did you mean digits-resnet"),
        ({"model": "/etc/passwd"}, "#/model", "upload the model"),
        ({"model": "os:system"}, "#/model", "not allowed"),
        ({"model": "upload:x.safetensors"}, "#/model", "not allowed"),
        ({"model": "torchvision:resnet19"}, "#/model", "resnet18"),
        ({"model": "transformers:gpt2"}, "#/model", "not allowed"),
        ({"model": "mdl_" + "0" * 26}, "#/model", "no uploaded model"),
        ({"data": "../secret.npz"}, "#/data", "not allowed"),
        ({"data": "images:/home"}, "#/data", "not allowed"),
        ({"data": "dogits"}, "#/data", "digits"),
        ({"options": ["w4b8"]}, "#/options", "w4b8"),
        ({"options": ["w4a8", "w4a8"]}, "#/options", "same"),
        ({"estimator": "hesian_trace"}, "#/estimator", "hessian_trace"),
        ({"settings": {"flor": 1}}, "#/settings", "floor"),
        ({"settings": {"floor": "low"}}, "#/settings", "float"),
        (
            {"estimator": "hessian_trace", "settings": {"probes": "some"}},
            "#/settings",
            "auto",
        ),
        ({"loss": "crossentropy"}, "#/loss", "cross_entropy"),
        ({"hardware": "nvidia-t5"}, "#/hardware", "nvidia-t4"),
        ({"budget": {"weight_memory": "3 ms"}}, "#/budget/weight_memory", "'ms'"),
        ({"budget": {"weight_memory": "0x"}}, "#/budget/weight_memory", "greater than zero"),
        ({"budget": {"latency": "3 ms"}}, "#/budget/latency", "hardware"),
        ({"fix": {"conv1": "w9q"}}, "#/fix/conv1", "w9q"),
        ({"fix": {"re:(": "w8a8"}}, "#/fix/re:(", "regular expression"),
        ({"skip": ["re:["]}, "#/skip/0", "regular expression"),
        ({"skip": ["re:a{99999999999999999999}"]}, "#/skip/0", "regular expression"),
        ({"groups": [f"re:{n}" for n in range(65)]}, "#/groups", "65 regular expressions"),
        ({"goal": "max:loss", "max_drop": 0.01}, "#/goal", "min:RESOURCE"),
        ({"solver": {"method": "magic"}}, "#/solver/method", "magic"),
        ({"execution": {"memory": "lots"}}, "#/execution", "lots"),
        ({"execution": {"memory": "1 PB"}}, "#/execution", "1 PB"),
        ({"memory_limit": "25%"}, "#/memory_limit", "25%"),
        ({"memory_limit": "0 B"}, "#/memory_limit", "0 B"),
        ({"refine": -1}, "#/refine", "greater than or equal to 0"),
        ({"refine": 4, "goal": "min:bops", "max_drop": 0.1}, "#", "refine"),
        ({"goal": "min:weight_memory", "max_drop": 0.1}, "#", "takes no budget"),
        ({"budget": {}}, "#", "budget"),
        ({"modle": "x"}, "#/modle", "Extra inputs"),
    ],
)
def test_what_cannot_run_is_refused_at_submission_and_the_problem_points_at_it(
    site: Site, change: dict, pointer: str, words: str
) -> None:
    answer = site.client.post("/v1/jobs", json=JOB | change)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    (fault, *_) = answer.json()["errors"]
    assert fault["pointer"] == pointer
    assert words in answer.json()["detail"]
    assert site.client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"model": "torchvision:resnet18", "data": "synthetic?count=8"},
        {"estimator": "hessian_trace", "settings": {"probes": 8}},
        {"estimator": "hessian_trace", "settings": {"probes": "auto", "settled": 1}},
        {"hardware": "nvidia-t4", "budget": {"latency": "3 ms", "weight_memory": "50%"}},
        {"options": ["w:mxfp4/a:fp8_e4m3", "w8a8", "float"]},
        {"budget": {}, "goal": "min:weight_memory", "max_drop": 0.01},
        {"fix": {"fc": "w8a8"}, "skip": ["re:conv.*"], "execution": {"memory": "512 MiB"}},
    ],
)
def test_what_can_run_is_taken(site: Site, change: dict) -> None:
    answer = site.client.post("/v1/jobs", json=JOB | change)
    assert answer.status_code == 202, answer.text


def test_an_uploaded_table_may_price_resources_of_its_own(solving_site: Site) -> None:
    table = {
        "device": "board",
        "provenance": "counted",
        "licence": "own",
        "units": {"cycles": "cycles"},
        "entries": [
            {"layer": "conv1", "option": "w4a8", "values": {"cycles": 10}},
            {"layer": "conv1", "option": "w8a8", "values": {"cycles": 20}},
        ],
    }
    client = solving_site.client
    made = client.post("/v1/hardware?name=own.json", json=table)
    assert made.status_code == 201, made.text
    job = JOB | {"hardware": made.json()["id"], "budget": {"cycles": "50%"}}
    assert client.post("/v1/jobs", json=job).status_code == 202
    listed = client.get("/v1/hardware?origin=uploaded").json()["items"]
    assert [entry["name"] for entry in listed] == [made.json()["id"]]


def test_pages_of_jobs_are_newest_first_and_do_not_shift(site: Site) -> None:
    ids = [site.queued() for _ in range(5)]
    first = site.client.get("/v1/jobs?limit=2").json()
    site.queued()
    second = site.client.get(f"/v1/jobs?limit=2&cursor={first['next']}").json()
    third = site.client.get(f"/v1/jobs?limit=2&cursor={second['next']}").json()
    seen = [job["id"] for page in (first, second, third) for job in page["items"]]
    assert seen == ids[::-1]
    assert third["next"] is None


def test_a_foreign_cursor_is_refused(site: Site) -> None:
    assert site.client.get("/v1/jobs?cursor=nonsense").status_code == 422


def test_jobs_are_listed_by_status(site: Site) -> None:
    done, waiting = site.finished(), site.queued()
    found = site.client.get("/v1/jobs?status=succeeded").json()["items"]
    assert [job["id"] for job in found] == [done]
    found = site.client.get("/v1/jobs?status=queued").json()["items"]
    assert [job["id"] for job in found] == [waiting]


def test_nothing_is_sent_twice_to_who_has_it_already(site: Site) -> None:
    job = site.queued()
    first = site.client.get(f"/v1/jobs/{job}")
    same = site.client.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["ETag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert same.headers["ETag"] == first.headers["ETag"]
    site.client.post(f"/v1/jobs/{job}/cancel")
    new = site.client.get(f"/v1/jobs/{job}", headers={"If-None-Match": first.headers["ETag"]})
    assert new.status_code == 200


def test_a_wait_ends_when_the_job_does(site: Site) -> None:
    job = site.queued()
    timer = threading.Timer(0.3, lambda: site.store.jobs.cancel("local", job))
    timer.start()
    began = time.monotonic()
    answer = site.client.get(f"/v1/jobs/{job}?wait=30")
    assert answer.json()["status"] == "cancelled"
    assert time.monotonic() - began < 20


def test_a_wait_with_an_etag_ends_at_any_change(site: Site) -> None:
    job = site.queued()
    tag = site.client.get(f"/v1/jobs/{job}").headers["ETag"]
    timer = threading.Timer(0.3, lambda: site.store.jobs.claim("test", 60.0))
    timer.start()
    answer = site.client.get(f"/v1/jobs/{job}?wait=30", headers={"If-None-Match": tag})
    assert answer.status_code == 200
    assert answer.json()["status"] == "running"


def test_a_wait_that_sees_no_change_ends_in_304(site: Site) -> None:
    job = site.queued()
    tag = site.client.get(f"/v1/jobs/{job}").headers["ETag"]
    answer = site.client.get(f"/v1/jobs/{job}?wait=0.2", headers={"If-None-Match": tag})
    assert answer.status_code == 304


def test_cancelling_is_final_and_may_be_repeated(site: Site) -> None:
    job = site.queued()
    for _ in range(2):
        answer = site.client.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_only_ended_jobs_are_deleted(site: Site) -> None:
    job = site.queued()
    assert site.client.delete(f"/v1/jobs/{job}").status_code == 409
    site.client.post(f"/v1/jobs/{job}/cancel")
    assert site.client.delete(f"/v1/jobs/{job}").status_code == 204
    assert site.client.get(f"/v1/jobs/{job}").status_code == 404
    assert site.client.delete(f"/v1/jobs/{job}").status_code == 404


def test_more_open_jobs_than_allowed_are_refused(make_site: MakeSite) -> None:
    with make_site(open_jobs=2) as site:
        codes = [site.client.post("/v1/jobs", json=JOB).status_code for _ in range(3)]
        assert codes == [202, 202, 429]


@pytest.mark.slow
def test_the_server_process_imports_no_torch() -> None:
    program = (
        "import sys, tempfile, pathlib\n"
        "from starlette.testclient import TestClient\n"
        "from mpsearch_api.http import create_app\n"
        "from mpsearch_api.settings import Settings\n"
        "import mpsearch_api.serving, mpsearch_api.cli\n"
        "app = create_app(Settings(data_dir=pathlib.Path(tempfile.mkdtemp())))\n"
        "with TestClient(app, base_url='http://127.0.0.1', client=('127.0.0.1', 1)) as client:\n"
        f"    answer = client.post('/v1/jobs', json={JOB!r})\n"
        "    assert answer.status_code == 202, answer.text\n"
        "    for name in ('formats', 'estimators', 'solvers', 'architectures', 'hardware'):\n"
        "        assert client.get('/v1/' + name).status_code == 200\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
