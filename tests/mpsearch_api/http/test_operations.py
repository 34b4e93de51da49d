"""Health, readiness, metrics and logs."""

from __future__ import annotations

import errno
import io
import json
import logging
import os

import pytest

from mpsearch_api.execution.folders import RunFolder
from mpsearch_api.faults import UnavailableError
from mpsearch_api.logs import configure_logs, get
from mpsearch_api.settings import Settings
from tests.mpsearch_api.http.running import MakeSite, Site


def test_health_needs_nothing_but_the_process(site: Site, monkeypatch) -> None:
    monkeypatch.setattr(type(site.store.database), "read", None)
    assert site.client.get("/healthz").json() == {"status": "alive"}


def test_readiness_names_what_is_missing(site: Site) -> None:
    answer = site.client.get("/readyz")
    assert answer.status_code == 503
    assert set(answer.json()["faults"]) == {"dispatcher"}
    dispatcher = RunFolder(site.service.settings.data_dir, "d")
    dispatcher.tell("no GPU", 0)
    assert site.client.get("/readyz").json()["faults"] == {"dispatcher": "no GPU"}
    dispatcher.tell(None, 0)
    assert site.client.get("/readyz").json() == {"status": "ready", "faults": {}}
    dispatcher.close()


def test_readiness_counts_dispatchers_of_other_machines(site: Site) -> None:
    elsewhere = site.store.dispatchers
    elsewhere.tell("far-1", "no GPU", 0)
    assert site.client.get("/readyz").json()["faults"] == {"dispatcher": "no GPU"}
    elsewhere.tell("far-2", None, 1)
    assert site.client.get("/readyz").status_code == 200
    # One of this machine that cannot run jobs is no reason while another one can.
    here = RunFolder(site.service.settings.data_dir, "d")
    here.tell("no memory", 0)
    assert site.client.get("/readyz").status_code == 200
    elsewhere.retire("far-2")
    assert site.client.get("/readyz").json()["faults"] == {"dispatcher": "no memory"}
    here.close()


def test_readiness_sees_a_database_and_a_blob_store_that_fail(site: Site, monkeypatch) -> None:
    def down(*_: object) -> None:
        raise UnavailableError("the database does not answer")

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(type(site.store.database), "write", down)
    monkeypatch.setattr(type(site.blobs), "put", full)
    faults = site.client.get("/readyz").json()["faults"]
    assert "does not answer" in faults["database"]
    assert "disk full" in faults["blobs"]


def test_a_database_that_is_away_is_a_503_that_may_be_tried_again(site: Site, monkeypatch) -> None:
    def down(*_: object) -> None:
        raise UnavailableError("the database does not answer")

    monkeypatch.setattr(type(site.store.jobs), "get", down)
    answer = site.client.get("/v1/jobs/job_" + "0" * 26)
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"


def test_metrics_count_jobs_and_requests_by_route_not_by_path(site: Site) -> None:
    site.finished()
    job = site.queued()
    for name in (job, "nonsense", "job_" + "0" * 26):
        site.client.get(f"/v1/jobs/{name}")
    answer = site.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'mpsearch_jobs{status="queued"} 1.0' in lines
    assert 'mpsearch_jobs{status="succeeded"} 1.0' in lines
    assert job not in answer.text
    wanted = 'mpsearch_http_request_seconds_count{method="GET",route="/v1/jobs/{job_id}"'
    counts = {line.split('status="')[1][:3]: line for line in lines if line.startswith(wanted)}
    assert counts["200"].endswith(" 1.0")
    assert counts["404"].endswith(" 2.0")


def test_every_request_leaves_one_line_with_its_ids(site: Site) -> None:
    job = site.queued()
    answer = site.client.get(f"/v1/jobs/{job}")
    lines = [json.loads(line) for line in site.log.getvalue().splitlines()]
    (found,) = [line for line in lines if line.get("path") == f"/v1/jobs/{job}"]
    assert found["job"] == job
    assert found["request_id"] == answer.headers["X-Request-ID"]
    assert (found["method"], found["status"]) == ("GET", 200)


def test_a_submission_is_logged_with_its_job(site: Site) -> None:
    body = {"model": "digits-resnet", "data": "digits", "budget": {"weight_memory": "1x"}}
    job = site.client.post("/v1/jobs", json=body).json()["id"]
    assert job in site.log.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_logs_hide_secrets_and_show_no_local_variables(form: str) -> None:
    stream = io.StringIO()
    configure_logs(Settings(log_format=form), stream)
    get("test").info("seen", authorization="Bearer hush", api_token="hush", path="/v1")
    logging.getLogger("library").warning("said %s", "this")

    def fails() -> None:
        password = "hush"  # noqa: F841
        raise RuntimeError("broken")

    try:
        fails()
    except RuntimeError:
        get("test").exception("failed")
    text = stream.getvalue()
    assert "hush" not in text.replace('password = "hush"', "")
    assert "/v1" in text
    assert "said this" in text
    assert "broken" in text


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logs(Settings(log_level="warning", log_format="json"), stream)
    get("test").info("quiet")
    get("test").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_may_be_tried_again(site: Site, monkeypatch, number: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(site.blobs), "put", full)
    octets = {"Content-Type": "application/octet-stream"}
    answer = site.client.post("/v1/datasets?name=a.txt", content=b"text", headers=octets)
    assert answer.status_code == 503
    assert "disk of the service is full" in answer.json()["detail"]


def test_one_tenant_has_so_many_waits_and_no_more(make_site: MakeSite, monkeypatch) -> None:
    monkeypatch.setattr("mpsearch_api.http.service.WAITS_OF_ONE", 2)
    with make_site() as site:
        job = site.queued()
        stream = {"Accept": "text/event-stream"}
        with site.service.waiting("local"), site.service.waiting("local"):
            for path, headers in (
                (f"/v1/jobs/{job}?wait=5", {}),
                (f"/v1/jobs/{job}/events", stream),
            ):
                refused = site.client.get(path, headers=headers)
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
            assert site.client.get(f"/v1/jobs/{job}").status_code == 200
        site.store.jobs.cancel("local", job)
        assert site.client.get(f"/v1/jobs/{job}/events", headers=stream).status_code == 200
        assert not site.service._waits


def test_paths_and_methods_of_strangers_end_neither_in_terminals_nor_in_labels(site: Site) -> None:
    site.client.get("/%1b]0;obeyed%07%0aforged=line")
    for number in range(5):
        site.client.request(f"M{number}", "/v1/jobs")
    assert "\x1b" not in site.log.getvalue()
    assert "\\u001b" not in site.log.getvalue()
    text = site.client.get("/metrics").text
    assert 'method="other"' in text
    assert "M3" not in text


def test_a_cached_file_is_for_the_key_that_fetched_it(site: Site) -> None:
    job = site.finished()
    for path in ("result", "report", "artifacts/layers.csv"):
        answer = site.client.get(f"/v1/jobs/{job}/{path}")
        if answer.status_code == 200:
            assert "Authorization" in answer.headers["Vary"], path
