"""Following a job, fetching what it produced, and solving it again."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time

import pytest

from mpsearch.allocating import allocate
from mpsearch.export import render
from mpsearch.schemas import Allocation, Costs, Frontier, Profile
from mpsearch_api.store.port import Update
from tests.mpsearch_api.http.running import Site, small_results

STREAM = {"Accept": "text/event-stream"}


def messages(text: str) -> list[dict]:
    """Read an event stream as the WHATWG's algorithm does, shortly."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":")
        )
        if "data" in fields:
            found.append(fields)
    return found


def test_events_come_in_pages(site: Site) -> None:
    job = site.finished()
    everything = site.client.get(f"/v1/jobs/{job}/events").json()
    ids = [event["id"] for event in everything["items"]]
    assert ids == list(range(1, len(ids) + 1))
    assert everything["next"] is None
    first = site.client.get(f"/v1/jobs/{job}/events?limit=1").json()
    rest = site.client.get(f"/v1/jobs/{job}/events?after={first['next']}").json()
    assert first["items"] + rest["items"] == everything["items"]


def test_the_stream_of_an_ended_job_tells_everything_and_ends(site: Site) -> None:
    job = site.finished()
    answer = site.client.get(f"/v1/jobs/{job}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = messages(answer.text)
    page = site.client.get(f"/v1/jobs/{job}/events").json()["items"]
    assert [json.loads(message["data"]) for message in told] == page
    assert [message["event"] for message in told] == [event["kind"] for event in page]
    assert [int(message["id"]) for message in told] == [event["id"] for event in page]


def test_the_stream_goes_on_after_the_last_event_id(site: Site) -> None:
    job = site.finished()
    answer = site.client.get(f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": "1"})
    assert int(messages(answer.text)[0]["id"]) == 2
    last = site.client.get(f"/v1/jobs/{job}/events").json()["items"][-1]["id"]
    over = site.client.get(f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": str(last)})
    assert over.status_code == 204


def test_the_stream_follows_a_running_job_to_its_end(site: Site) -> None:
    job = site.queued()

    def work() -> None:
        claim = site.store.jobs.claim("test", 60.0)
        assert claim is not None
        for share in (0.5, 1.0):
            time.sleep(0.1)
            site.store.jobs.report(claim, [Update("progress", "profile", share)])
        site.store.jobs.complete(claim, [])

    worker = threading.Thread(target=work)
    worker.start()
    told = messages(site.client.get(f"/v1/jobs/{job}/events", headers=STREAM).text)
    worker.join()
    shares = [json.loads(m["data"])["progress"] for m in told if m["event"] == "progress"]
    assert shares == [0.5, 1.0]
    assert json.loads(told[-1]["data"])["status"] == "succeeded"


def test_a_stream_is_never_compressed(site: Site) -> None:
    job = site.finished()
    headers = STREAM | {"Accept-Encoding": "gzip"}
    answer = site.client.get(f"/v1/jobs/{job}/events", headers=headers)
    assert "content-encoding" not in answer.headers


def test_head_of_a_stream_ends(site: Site) -> None:
    job = site.queued()
    answer = site.client.head(f"/v1/jobs/{job}/events", headers=STREAM)
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("result", "allocation.json"),
        ("profile", "profile.json"),
        ("costs", "costs.json"),
        ("frontier", "frontier.json"),
        ("report", "report.html"),
        ("report?format=png", "frontier.png"),
        ("report?format=csv", "layers.csv"),
        ("report?format=txt", "log.txt"),
        ("artifacts/layers.csv", "layers.csv"),
    ],
)
def test_results_are_the_stored_bytes_with_their_digest(site: Site, path: str, name: str) -> None:
    job = site.finished()
    media_type, content = small_results()[name]
    answer = site.client.get(f"/v1/jobs/{job}/{path}")
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"] == media_type
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert answer.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    tag = {"If-None-Match": answer.headers["ETag"]}
    assert site.client.get(f"/v1/jobs/{job}/{path}", headers=tag).status_code == 304


def test_the_report_may_run_no_script(site: Site) -> None:
    job = site.finished()
    policy = site.client.get(f"/v1/jobs/{job}/report").headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_a_result_before_the_end_is_a_conflict_that_says_so(site: Site) -> None:
    job = site.queued()
    answer = site.client.get(f"/v1/jobs/{job}/result")
    assert answer.status_code == 409
    assert "queued" in answer.json()["detail"]
    site.client.post(f"/v1/jobs/{job}/cancel")
    assert "cancelled" in site.client.get(f"/v1/jobs/{job}/result").json()["detail"]


def test_the_result_of_a_failed_job_tells_the_failure(site: Site) -> None:
    job = site.failed()
    answer = site.client.get(f"/v1/jobs/{job}/result")
    assert answer.status_code == 409
    assert "memory" in answer.json()["detail"]
    assert "needs 5 GiB" in answer.json()["detail"]


def test_a_file_that_the_job_did_not_make_is_not_found(site: Site) -> None:
    job = site.finished()
    for name in ("secret.txt", "..%2f..%2fetc%2fpasswd", "allocation.json%00"):
        assert site.client.get(f"/v1/jobs/{job}/artifacts/{name}").status_code == 404


def test_solving_again_gives_what_the_library_gives(solving_site: Site) -> None:
    job = solving_site.finished()
    results = small_results()
    profile = Profile.model_validate_json(results["profile.json"][1])
    costs = Costs.model_validate_json(results["costs.json"][1])
    for budget in ({"weight_memory": "120 B"}, {"weight_memory": "0.2x"}, {"weight_memory": 340}):
        answer = solving_site.client.post(f"/v1/jobs/{job}/solve", json={"budget": budget})
        assert answer.status_code == 200, answer.text
        found = Allocation.model_validate_json(answer.content)
        expected = allocate(profile, costs, budget)
        assert found.layers == expected.layers
        assert found.objective == expected.objective
        assert found.verification is None


def test_an_impossible_budget_names_the_least_achievable(solving_site: Site) -> None:
    job = solving_site.finished()
    answer = solving_site.client.post(
        f"/v1/jobs/{job}/solve", json={"budget": {"weight_memory": "10 B"}}
    )
    assert answer.status_code == 422
    assert answer.json()["title"] == "Infeasible"
    assert answer.json()["minimum"] == {"weight_memory": 85.0}


@pytest.mark.parametrize(
    "body",
    [
        {"budget": {"weight_memory": "10 parsec"}},
        {"budget": {"latency": "3 ms"}},
        {"budget": {}},
        {"budget": {"weight_memory": "1x"}, "solver": {"method": "magic"}},
    ],
)
def test_a_budget_that_means_nothing_is_refused(solving_site: Site, body: dict) -> None:
    job = solving_site.finished()
    assert solving_site.client.post(f"/v1/jobs/{job}/solve", json=body).status_code == 422


def test_solving_again_needs_a_finished_job(site: Site) -> None:
    body = {"budget": {"weight_memory": "1x"}}
    for job in (site.queued(), site.failed()):
        assert site.client.post(f"/v1/jobs/{job}/solve", json=body).status_code == 409
        site.store.jobs.cancel("local", job)


def test_an_allocation_is_exported_for_tools_that_need_no_model(site: Site) -> None:
    job = site.finished()
    answer = site.client.get(f"/v1/jobs/{job}/export?to=json")
    assert answer.status_code == 200, answer.text
    allocation = Allocation.model_validate_json(small_results()["allocation.json"][1])
    rendered = render(allocation, "json")
    assert answer.content == rendered.content
    assert rendered.name in answer.headers["Content-Disposition"]
    for target in ("nonsense", "onnxruntime"):
        refused = site.client.get(f"/v1/jobs/{job}/export?to={target}")
        assert refused.status_code == 422
        assert target in refused.json()["detail"]


def test_a_frontier_of_a_named_resource_is_computed(solving_site: Site) -> None:
    job = solving_site.finished()
    answer = solving_site.client.get(f"/v1/jobs/{job}/frontier?resource=weight_memory")
    found = Frontier.model_validate_json(answer.content)
    assert found.points[0].usage == 85.0
    assert solving_site.client.get(f"/v1/jobs/{job}/frontier?resource=joy").status_code == 422
